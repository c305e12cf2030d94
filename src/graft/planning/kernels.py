"""Seconds of a trace's operations on this device, each timed once and kept for later plans.

The largest are timed one by one; small ones cost their call, whatever they compute (`overhead`).
Where the time for timing is over, an operation takes what others of its name took for their work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graft.atomic import write_text
from graft.planning.device import Kind
from graft.planning.operation import Operation, TensorSpec
from graft.planning.stopwatch import seconds_of

__all__ = ["Kernels", "Summed", "is_small"]

_BUDGET = 10.0  # seconds of timing in one process
_SHARE = 0.98  # of a step's kernels that is timed, the rest goes by rates
_SMALL_FLOPS, _SMALL_BYTES = 1e5, 3e4
_PACE = 1.5  # a probe that much faster or slower than before: the machine is not what it was
_KEPT = 20_000  # operations in the file
_PROBE = 512  # side of the matrices of the probe
_NUMBER = TensorSpec((1,), (1,), torch.float32)
_LEAST = Operation("aten.neg.default", (_NUMBER,), (), 1, 0, 8)  # a call, and no work


@dataclass(frozen=True)
class Summed:
    """The kernels of a step.

    Attributes:
        seconds: Of all that are not small.
        timed: Which share of these seconds was timed; the rest was estimated.
    """

    seconds: float
    timed: float


class Kernels:
    """What operations take on a device that is here.

    Args:
        kind: Of the device.
        name: Of the device; timings are kept by it.
        folder: Where.

    Attributes:
        notes: More that was measured on this device, kept in the same file.
    """

    def __init__(self, kind: Kind, name: str, folder: Path) -> None:
        self.kind = kind
        threads = torch.get_num_threads()
        self._about = f"{kind}, {name}, torch {torch.__version__}, {threads} threads"
        digest = hashlib.sha256(self._about.encode()).hexdigest()[:12]
        self._file = folder / f"timings-{digest}.json"
        self._left = _BUDGET
        self._probe = self._time_probe()
        self._least = seconds_of(_LEAST, kind) or 0.0
        self._seconds: dict[str, float | None] = {}  # with the call, which is counted elsewhere
        self.notes: dict[str, Any] = {}
        self._written = ""
        self._read()

    def sum(self, operations: Sequence[Operation]) -> Summed:
        """Add up what `operations` take, and time what was not timed yet."""
        large = [each for each in operations if not is_small(each)]
        guesses = {id(each): self._guess(each) * each.count for each in large}
        large.sort(key=lambda each: -guesses[id(each)])
        wanted, guessed = _SHARE * sum(guesses.values()), 0.0
        timed: list[tuple[Operation, float]] = []
        rest: list[Operation] = []
        for each in large:
            seconds = self._timed(each) if guessed < wanted else self._known(_key(each))
            guessed += guesses[id(each)]
            if seconds is None:
                rest.append(each)
            else:
                timed.append((each, seconds))
        known = sum(seconds * each.count for each, seconds in timed)
        others = sum(self._by_rate(each, timed) * each.count for each in rest)
        whole = known + others
        return Summed(whole, known / whole if whole else 1.0)

    def save(self) -> None:
        """Keep what was timed."""
        kept = dict(list(self._seconds.items())[-_KEPT:])
        text = json.dumps(
            {"about": self._about, "probe": self._probe, "notes": self.notes, "seconds": kept}
        )
        if text != self._written:
            write_text(self._file, text)
            self._written = text

    def _timed(self, operation: Operation) -> float | None:
        key = _key(operation)
        if key not in self._seconds and self._left > 0:
            start = time.perf_counter()
            self._seconds[key] = seconds_of(operation, self.kind)
            self._left -= time.perf_counter() - start
        return self._known(key)

    def _known(self, key: str) -> float | None:
        seconds = self._seconds.get(key)
        return None if seconds is None else max(0.0, seconds - self._least)

    def _guess(self, operation: Operation) -> float:
        """Seconds by the probe's rate, good enough to know what is worth timing."""
        rate = 2 * _PROBE**3 / self._probe
        return max(operation.flops, 10 * operation.bytes) / rate

    def _by_rate(self, operation: Operation, timed: Sequence[tuple[Operation, float]]) -> float:
        """Seconds as others of its name and number format took for their work."""
        alike = [
            (_work(other), seconds)
            for other, seconds in timed
            if other.name == operation.name and _dtype(other) == _dtype(operation)
        ]
        if not alike:
            return self._guess(operation)
        return _work(operation) * sum(s for _, s in alike) / sum(work for work, _ in alike)

    def _time_probe(self) -> float:
        side = torch.rand(_PROBE, _PROBE, device=self.kind)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(side, side).sum().item()
            times.append(time.perf_counter() - start)
        return min(times)

    def _read(self) -> None:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            if 1 / _PACE < kept["probe"] / self._probe < _PACE:
                self._probe, self.notes = kept["probe"], dict(kept["notes"])
                self._seconds = dict(kept["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # nothing was timed yet, or by another version


def is_small(operation: Operation) -> bool:
    """Whether an operation costs its call and little more."""
    return operation.flops < _SMALL_FLOPS and operation.bytes < _SMALL_BYTES


def _key(operation: Operation) -> str:
    told = repr((operation.name, operation.arguments, operation.keywords))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _work(operation: Operation) -> int:
    return operation.flops or operation.bytes


def _dtype(operation: Operation) -> torch.dtype | None:
    specs = [each for each in operation.arguments if isinstance(each, TensorSpec)]
    return specs[0].dtype if specs else None
