"""How many tokens adapters may put into one forward pass, so that a run stays within a memory."""

from __future__ import annotations

from collections.abc import Iterator

from graft.download.selection import size_text
from graft.errors import PlanError
from graft.planning.device import Device
from graft.planning.plan import Plan, plan_of_run
from graft.training.config import RunConfig

__all__ = ["within_memory"]


def within_memory(config: RunConfig, device: Device) -> RunConfig:
    """The run with the largest `train.tokens_per_pass` by which it fits `device`.

    What does not fit into a pass waits for the next one; batches themselves stay as they are.

    Raises:
        PlanError: It cannot be planned, or does not fit with each batch in a pass of its own.
    """
    alone = _planned(_with_budget(config, 1), device)
    if not alone.fits:
        raise PlanError(f"Even with each batch in a pass of its own: {alone.verdict()}")
    if len(config.adapters) == 1:
        return config
    largest = sum(row.tokens for row in alone.case.workload.longest)
    for share in _shares(len(config.adapters)):
        shared = _with_budget(config, largest * share)
        if _planned(shared, device).fits:
            return shared
    return _with_budget(config, largest)


def _shares(adapters: int) -> Iterator[int]:
    """How many batches a pass may hold, of the most first; one is known to fit."""
    share = adapters
    while share > 1:
        yield share
        share //= 2


def _with_budget(config: RunConfig, tokens: int) -> RunConfig:
    train = config.train.model_copy(update={"tokens_per_pass": tokens})
    return config.model_copy(update={"train": train})


def _planned(config: RunConfig, device: Device) -> Plan:
    told: list[str] = []
    plan = plan_of_run(config, tell=told.append, device=device, timed=False)
    if plan is None:
        why = next((text for text in told if text.startswith("no plan")), "no plan")
        raise PlanError(f"{size_text(device.free_bytes)} cannot be kept to: {why}.")
    return plan
