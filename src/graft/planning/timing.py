"""How long a step takes: the kernels that it calls, what calling them costs, and how sure that is.

On a device that is here they are timed. For one that is not, its maker's rates give the least that
a step can take, and the rest is said.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from graft.data.cache import cache_folder
from graft.planning.calibration import pace
from graft.planning.device import Device, Kind
from graft.planning.kernels import Kernels
from graft.planning.operation import Operation, TensorSpec
from graft.planning.overhead import overhead_of

__all__ = ["StepTime", "step_time"]

_SPREAD = 0.15  # what timed operations are off by, before any run has shown
_RUNS_NEEDED = 3  # for a range by runs
_REACHED = 0.5, 0.25  # of a device's stated rates: often, and by a step of many small kernels


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step.

    Attributes:
        seconds: Expected.
        low: The least that may be.
        high: The most that may be.
        tokens_per_second: Tokens of the step over `seconds`.
        how: `measured on this machine`, `measured in N runs` or `stated rate`.
        reason: Why it is a range, in words.
    """

    seconds: float
    low: float
    high: float
    tokens_per_second: float
    how: str
    reason: str


def step_time(
    operations: Sequence[Operation], device: Device, tokens: int, fresh: int = 0
) -> StepTime | None:
    """The time of a step that calls `operations`.

    The first call on a device times them, for some 15 seconds at most; timings are kept in graft's
    cache folder.

    Args:
        operations: Of a trace.
        device: Where the step would run.
        tokens: Of the step, without padding.
        fresh: Bytes that the step takes and gives back: its peak, less what stays between steps.

    Returns:
        None for a device that is not here and of which no rates are stated.
    """
    if device.here:
        return _measured(operations, device, tokens, fresh)
    return _stated(operations, device, tokens) if device.rates else None


def _measured(operations: Sequence[Operation], device: Device, tokens: int, fresh: int) -> StepTime:
    with torch.random.fork_rng():  # the caller's random numbers stay what they were
        kernels = _kernels(device.kind, device.name, cache_folder())
        overhead = overhead_of(kernels)
        summed = kernels.sum(operations)
    kernels.save()
    if device.kind == "cpu":
        seconds = summed.seconds + overhead.seconds(operations)
        paging = overhead.paging(fresh)
    else:  # kernels run while the next ones are called
        seconds, paging = max(summed.seconds, overhead.seconds(operations)), 0.0
    known = pace(device)
    middle, low, high = seconds + paging / 2, seconds * (1 - _SPREAD), seconds + paging
    high *= 1 + _SPREAD
    how, reason = "measured on this machine", "operations were timed one by one, steps were not"
    if summed.timed < 0.9:
        reason += f", and {1 - summed.timed:.0%} of them by the rate of others"
    if known is not None:
        how = f"measured in {known.runs} runs" if known.runs > 1 else "measured in 1 run"
        reason = f"runs here took {known.low:.2f} to {known.high:.2f} of what their operations do"
        if known.runs >= _RUNS_NEEDED:
            low, high = middle * known.low, middle * known.high
        else:
            low, high = low * known.factor, high * known.factor
        middle *= known.factor
    return StepTime(middle, low, high, tokens / middle, how, reason)


def _stated(operations: Sequence[Operation], device: Device, tokens: int) -> StepTime:
    """By rates: no kernel is faster than its FLOPs over the rate, its bytes over the bandwidth."""
    slowest = min(device.rates.values())
    low = sum(
        each.count
        * max(each.flops / device.rates.get(_dtype(each), slowest), each.bytes / device.bandwidth)
        for each in operations
    )
    often, least = _REACHED
    reason = (
        f"the least by its stated rates; steps often reach {often:.0%} of them and seldom less "
        f"than {least:.0%}"
    )
    return StepTime(low / often, low, low / least, tokens * often / low, "stated rate", reason)


@functools.cache
def _kernels(kind: Kind, name: str, folder: Path) -> Kernels:
    return Kernels(kind, name, folder)


def _dtype(operation: Operation) -> torch.dtype:
    specs = [each for each in operation.arguments if isinstance(each, TensorSpec)]
    return specs[0].dtype if specs else torch.float32
