"""What would need less memory: the cheapest changes first, those that leave the result as it is.

smaller passes, more of them      the same result
activations computed again        the same result, a third more time
shorter rows                      other data
another base, a quantised one     another base model
another method                    another result
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from graft.download import size_text
from graft.planning.case import FULL, Case, Learner, Planner, Way
from graft.planning.device import Device
from graft.planning.formulas import BASES, Base
from graft.planning.workload import smaller

__all__ = ["Change", "cheaper", "what_fits"]

_SHORTER = (0.5, 0.25, 0.125)
_SHORTEST = 32
_METHODS = 2  # that are tried: their peaks differ little, and each takes a trace


@dataclass(frozen=True)
class Change:
    """Something to change, and what comes of it.

    Attributes:
        words: What.
        overrides: The same as settings of a run file, `key=value`; None where graft cannot train
            so by a run file.
        case: The plan with it.
        times: Step time over that of the plan without it; None where times are not known.
    """

    words: str
    overrides: tuple[str, ...] | None
    case: Case
    times: float | None

    def line(self) -> str:
        """For a run that is out of memory."""
        what = self.words if self.overrides is None else " ".join(self.overrides)
        slower = "" if self.times is None else f", {self.times:.2g}x the time"
        return f"{what} ({size_text(self.case.peak)}{slower})"


def cheaper(planner: Planner, case: Case, device: Device) -> list[Change]:
    """Changes that leave the result of `case` as it is and need less, each by itself."""
    search = _Search(planner, case, device)
    ways = [replace(case.way, parts=parts) for parts in search.parts[1:2]]
    if not case.way.gradient_checkpointing:
        ways.append(replace(case.way, gradient_checkpointing=True))
    changes = [search.change(way) for way in ways]
    return [c for c in changes if c.case.problem is None and c.case.peak < case.peak]


def what_fits(
    planner: Planner, case: Case, device: Device, others: Sequence[Learner]
) -> list[Change]:
    """The changes that make `case` fit `device`, the cheapest first; empty where none does.

    Args:
        planner: Plans them.
        case: What does not fit.
        device: What it is to fit.
        others: Other methods, those that learn most first.
    """
    search = _Search(planner, case, device)
    own, learner = case.way, case.learner
    again = replace(own, gradient_checkpointing=True)
    same = [search.fewest_parts(own), again if search.fits(again) else None]
    if not any(same):
        same.append(search.fewest_parts(again))
    # What changes the result stands alone where it can; else with what does not.
    found = [(way, learner) for way in same]
    found.append((search.first(replace(own, length=n) for n in _lengths(case)), learner))
    for base in BASES[BASES.index(own.base) + 1 :]:
        if base.bits is None or learner.name != FULL:
            found.append((search.first([replace(own, base=base)]), learner))
    found.append(search.other_method(others))
    return [search.change(way, learner) for way, learner in found if way is not None]


class _Search:
    """Ways around a case, tried one after the other."""

    def __init__(self, planner: Planner, case: Case, device: Device) -> None:
        self.planner, self.case, self.device = planner, case, device
        self.parts = [p for p in (1, *smaller(planner.source.batch_size)) if p >= case.way.parts]
        self._enough: int | None = None  # index of the parts that the last search found
        self._weights: dict[Base, int] = {case.way.base: case.memory.weights}
        self._kept: dict[tuple[str, Base], int] = {(case.learner.name, case.way.base): case.kept}

    def fits(self, way: Way, learner: Learner | None = None) -> bool:
        """Whether it fits the device."""
        learner = learner or self.case.learner
        key = learner.name, way.base
        least = max(self._kept.get(key, 0), self._weights.get(way.base, 0))
        if not self.device.fits(least):
            return False  # whatever its batches are
        found = self.planner.case(learner, way, timed=False)
        if found.problem is not None:
            return False
        self._weights[way.base], self._kept[key] = found.memory.weights, found.kept
        return self.device.fits(found.peak)

    def first(self, ways: Iterable[Way], learner: Learner | None = None) -> Way | None:
        """The first of `ways` that fits; else the first that does with smaller passes too."""
        tried = list(ways)
        for way in tried:
            if self.fits(way, learner):
                return way
        for way in tried:
            for again in dict.fromkeys((way.gradient_checkpointing, True)):
                found = self.fewest_parts(replace(way, gradient_checkpointing=again), learner)
                if found is not None:
                    return found
        return None

    def fewest_parts(self, way: Way, learner: Learner | None = None) -> Way | None:
        """`way` with batches in as few parts as fit; None where none do."""
        last = len(self.parts) - 1
        low, high = 0, last + 1  # the smaller a pass, the less it needs
        # What was enough for another way is often just enough for this one.
        guesses = (last if self._enough is None else self._enough, (self._enough or 0) - 1, last)
        while low < high:
            middle = next((at for at in guesses if low <= at < high), (low + high) // 2)
            if self.fits(replace(way, parts=self.parts[middle]), learner):
                high = middle
            else:
                low = middle + 1
        if high > last:
            return None
        self._enough = high
        return replace(way, parts=self.parts[high])

    def other_method(self, others: Sequence[Learner]) -> tuple[Way | None, Learner]:
        """The first of `others` that fits in the place of the case's; else with what makes it."""
        own = self.case.way
        for other in others[:_METHODS]:
            if self.fits(own, other):
                return own, other
        for other in others[:1]:
            return self.first([own], other), other
        return None, self.case.learner

    def change(self, way: Way, learner: Learner | None = None) -> Change:
        """From the case to `way`."""
        learner = learner or self.case.learner
        case = self.planner.case(learner, way, timed=self.case.time is not None)
        before, after = self.case.time, case.time
        times = None if before is None or after is None else after.seconds / before.seconds
        told = list(self._differences(way, learner))
        settings = [each for _, own in told for each in own or ()]
        writable = all(own is not None for _, own in told)
        words = ", ".join(said for said, _ in told)
        return Change(words, tuple(settings) if writable else None, case, times)

    def _differences(
        self, way: Way, learner: Learner
    ) -> Iterator[tuple[str, tuple[str, ...] | None]]:
        """Each difference from the case, in words and as settings of a run file."""
        old = self.case.way
        if way.parts != old.parts:
            yield self.planner.source.split(way.parts)
        if way.gradient_checkpointing and not old.gradient_checkpointing:
            yield "gradient checkpointing", ("train.gradient_checkpointing=true",)
        if way.length != old.length:
            yield f"rows of {way.length:,} tokens at most", (f"data.max_length={way.length}",)
        if way.base != old.base:
            settings = ("train.bf16=true",) if way.base.bits is None else None
            yield f"the base model in {way.base.name}", settings
        if learner != self.case.learner:
            yield f"{learner.name} in place of {self.case.learner.name}", None


def _lengths(case: Case) -> Iterator[int]:
    """Lengths below that of the longest row, in round numbers."""
    longest = case.workload.length
    lengths = (int(share * longest) // 16 * 16 for share in _SHORTER)
    yield from (length for length in dict.fromkeys(lengths) if _SHORTEST <= length < longest)
