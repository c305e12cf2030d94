"""What the benchmarks of speed have in common in telling what they found.

Figures are ratios within a round, in which each contender ran once: what slows the machine slows
all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Clock", "machine", "ratios", "save", "spread"]


class Clock:
    """The time that a benchmark may take."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser, minutes: float) -> None:
        """The option `--minutes`."""
        parser.add_argument(
            "--minutes", type=float, default=minutes, help="begin no round after so many"
        )

    @property
    def is_over(self) -> bool:
        """Whether no round shall begin any more."""
        return time.monotonic() > self._end


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    import torch

    packages = ("torch", "transformers", "peft", "accelerate")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def ratios(records: Sequence[dict[str, Any]], own: str, other: str, figure: str) -> list[float]:
    """For each round that has both, `figure` of the runner `own` over that of `other`."""
    found = {(r["round"], r["runner"]): r[figure] for r in records if r["runner"] in (own, other)}
    rounds = {number for number, _ in found}
    return [
        found[number, own] / found[number, other]
        for number in sorted(rounds)
        if (number, own) in found and (number, other) in found
    ]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    if not values:
        return "-"
    shown = [statistics.median(values), min(values), max(values)]
    middle, low, high = (f"{value:.{digits}f}" for value in shown)
    return f"{middle} ({low} to {high})"


def save(folder: Path, name: str, records: Sequence[dict[str, Any]], **more: Any) -> Path:
    """Write all measurements as `folder`/`name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"machine": machine(), **more, "records": list(records)}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path
