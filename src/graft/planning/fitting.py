"""A run file with the changes that make its run fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from graft.errors import PlanError
from graft.planning.advice import Change
from graft.planning.plan import Plan
from graft.training.reading import read_settings
from graft.training.runfile import parse_run_config

__all__ = ["fitting_change", "fitting_text"]


def fitting_change(plan: Plan) -> Change | None:
    """The cheapest change that makes a run fit and that a run file can say; None: it fits.

    Raises:
        PlanError: There is none.
    """
    if plan.fits:
        return None
    for change in plan.advice:
        if change.overrides is not None and plan.device.fits(change.case.peak):
            return change
    others = [change.words for change in plan.advice]
    hint = f" What would fit, and no run file can say: {'; '.join(others)}." if others else ""
    raise PlanError(f"No setting of a run file makes this run fit {plan.device.name}.{hint}")


def fitting_text(path: Path, overrides: Sequence[str], change: Change | None) -> str:
    """The text of the run file `path` with `overrides`, and then with `change`.

    Comments are not carried over; paths in it are relative to the same folder as before.
    """
    raw = read_settings(path)
    changed = [*overrides, *(change.overrides or () if change else ())]
    parse_run_config(raw, changed)  # applies them to `raw`, and must be a run
    told = "as it is" if change is None else change.words
    head = f"# {path.name}, made to fit by graft plan: {told}.\n"
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
