"""What real runs on a device took, beside what was planned for them: its margin and its pace.

Each device has a file in graft's cache folder with its last runs. A plan for it then counts with
what they needed beside their tensors, and with the time that they took.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graft.atomic import write_text
from graft.data.cache import cache_folder

if TYPE_CHECKING:
    from graft.planning.device import Device
    from graft.training.forecast import Forecast

__all__ = ["Pace", "Run", "calibrated", "pace", "remember", "runs_on"]

_RUNS = 30  # that are kept
_LEAST_SHARE = 0.01  # even where runs needed less than was planned


@dataclass(frozen=True)
class Run:
    """A run on a device.

    Attributes:
        at: Its date, as YYYY-MM-DD.
        planned_bytes: Peak of its tensors, as planned.
        measured_bytes: What it took of the device; None where that was not measured.
        planned_seconds: Of a step, before any calibration.
        measured_seconds: Of a step; None where that was not measured.
    """

    at: str
    planned_bytes: int
    measured_bytes: int | None
    planned_seconds: float
    measured_seconds: float | None


@dataclass(frozen=True)
class Pace:
    """Measured over planned seconds of the runs on a device.

    Attributes:
        factor: Their median.
        low: The smallest.
        high: The largest.
        runs: How many there were.
    """

    factor: float
    low: float
    high: float
    runs: int


def remember(
    device: Device, planned: Forecast, measured_peak: int | None, measured_seconds: float | None
) -> None:
    """Keep what a run took, for the next plan on `device`.

    Args:
        device: The one that it ran on.
        planned: What the plan said of it.
        measured_peak: Bytes: the allocator's reserve on a GPU; on a CPU what was resident beyond
            the libraries.
        measured_seconds: Of a step, without the first.
    """
    known = pace(device)
    run = Run(
        time.strftime("%Y-%m-%d"),
        planned.peak_bytes,
        measured_peak,
        planned.step_seconds / (known.factor if known else 1.0),
        measured_seconds,
    )
    kept = [asdict(each) for each in [*runs_on(device), run][-_RUNS:]]
    write_text(_file(device), json.dumps({"device": device.name, "runs": kept}, indent=1) + "\n")


def runs_on(device: Device) -> list[Run]:
    """The last runs on `device`, oldest first."""
    try:
        kept = json.loads(_file(device).read_text(encoding="utf-8"))
        return [Run(**each) for each in kept["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none yet, or a file of another version


def calibrated(device: Device) -> Device:
    """`device` with the margin that its runs needed: the largest share among them."""
    runs = [run for run in runs_on(device) if run.measured_bytes is not None]
    shares = [
        ((run.measured_bytes or 0) - device.margin.bytes) / run.planned_bytes - 1 for run in runs
    ]
    if not shares:
        return device
    share = max(_LEAST_SHARE, *shares)
    how = f"measured on {runs[-1].at}, {_count(shares)}"
    return replace(device, margin=replace(device.margin, share=share, how=how))


def pace(device: Device) -> Pace | None:
    """How much longer than planned the steps of runs on `device` took; None without runs."""
    ratios = [
        run.measured_seconds / run.planned_seconds
        for run in runs_on(device)
        if run.measured_seconds is not None and run.planned_seconds > 0
    ]
    if not ratios:
        return None
    return Pace(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def _count(runs: Sequence[object]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _file(device: Device) -> Path:
    digest = hashlib.sha256(f"{device.kind} {device.name}".encode()).hexdigest()[:12]
    return cache_folder() / f"runs-on-{digest}.json"
