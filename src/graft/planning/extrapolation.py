"""The course of a whole step from the trace of one in which layers stand for others.

Between two layers that are alike, the same happens: the curve of bytes over a layer is the same,
a constant higher. So the part of a trace that belongs to a layer is repeated for all that it stands
for, each time shifted by what the one before left behind.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graft.planning.memory import KINDS, Moment
from graft.planning.skeleton import Layer
from graft.planning.tracing import Event, Phase, Recorder, Stored

__all__ = ["course"]

_PLACE = {kind: index for index, kind in enumerate(KINDS)}
Bytes = list[int]  # by kind


@dataclass(frozen=True)
class _Stretch:
    """A phase with the bytes at its start, at its highest moment and at its end."""

    phase: Phase
    start: Bytes
    highest: Bytes
    end: Bytes


def course(recorder: Recorder) -> tuple[Moment, ...]:
    """The moments of the step: the start of each of its phases, and the highest of each."""
    settle_kinds(recorder)
    stretches = list(_stretches(recorder))
    passes = 1 + max(stretch.phase.batch for stretch in stretches)
    moments: list[Moment] = []
    lifted = [0] * len(KINDS)
    for repeated, group in itertools.groupby(stretches, key=_stood_for):
        own = list(group)
        times = 1 if repeated is None else repeated[0]
        left = [end - start for end, start in zip(own[-1].end, own[0].start, strict=True)]
        for turn in range(times):
            for stretch in own:
                # Forwards the lower layers come first, backwards the upper ones.
                repeat = turn if stretch.phase.name == "forward" else times - 1 - turn
                words = _words(stretch.phase, repeat, passes)
                moments += [_moment(words, at, lifted) for at in (stretch.start, stretch.highest)]
            if turn < times - 1:
                lifted = [a + b for a, b in zip(lifted, left, strict=True)]
    return tuple(moments)


def settle_kinds(recorder: Recorder) -> None:
    """Say what the storages are for of which it was not known when they were made."""
    backward: dict[int, int] = {}  # of each pass the first phase of its backward
    for index, phase in enumerate(recorder.phases):
        if phase.name == "backward":
            backward.setdefault(phase.batch, index)
    ends = {id(event.stored): event.phase for event in recorder.events if event.change < 0}
    for event in recorder.events:
        own = event.stored
        if own.kind or own.born is None:
            continue
        kept = ends.get(id(own), len(recorder.phases)) >= backward.get(own.born.batch, 0)
        if own.logits or (own.born.name == "loss" and not recorder.vocabulary and kept):
            own.kind = "logits"
        elif own.born.name == "recomputation":
            own.kind = "recomputation"
        elif own.born.name in ("forward", "loss") and kept:
            own.kind = "activations"
        else:
            own.kind = "workspace"


def _stretches(recorder: Recorder) -> Iterator[_Stretch]:
    now = [0] * len(KINDS)
    for own in recorder.held():
        now[_PLACE[own.kind]] += own.bytes * _times(own.layer)
    events = [event for event in recorder.events if event.stored.born is not None]
    weights = _weights(events, recorder.phases)
    at = 0
    for index, phase in enumerate(recorder.phases):
        start, highest, top = now.copy(), now.copy(), sum(now)
        while at < len(events) and events[at].phase == index:
            event, weight = events[at], weights.get(at, 1)
            at += 1
            if event.change > 0 and sum(now) > top:  # what a sum in place has settled to
                highest, top = now.copy(), sum(now)
            now[_PLACE[event.stored.kind]] += event.change * event.stored.bytes * weight
            if event.change > 0 and not event.settles and sum(now) > top:
                highest, top = now.copy(), sum(now)
        if sum(now) > top:
            highest = now.copy()
        yield _Stretch(phase, start, highest, now.copy())


def _weights(events: Sequence[Event], phases: Sequence[Phase]) -> dict[int, int]:
    """How many storages an event is of, by its index, where that is not one.

    What a repeated layer has made may end where nothing is repeated. Either each of the layers has
    left one (gradients, which the optimizer ends), or the next layer ends that of the one before,
    and so does the repeated one that of a layer before it, as often as it is repeated: then it is
    but the last one's.
    """
    handed_on: Counter[tuple[int, int, str]] = Counter()
    left: list[int] = []
    for index, event in enumerate(events):
        born = event.stored.born
        if event.change > 0 or born is None or born.layer is None:
            continue
        made_again, ends_again = (_times(p.layer) > 1 for p in (born, phases[event.phase]))
        if ends_again and not made_again:
            handed_on[_alike(event.stored)] += 1
        elif made_again and not ends_again:
            left.append(index)
    weights: dict[int, int] = {}
    for index in left:  # what is handed on ends first
        stored = events[index].stored
        if handed_on[_alike(stored)]:
            handed_on[_alike(stored)] -= 1
        elif stored.born is not None:
            weights[index] = _times(stored.born.layer)
    return weights


def _alike(stored: Stored) -> tuple[int, int, str]:
    assert stored.born is not None
    return stored.born.batch, stored.bytes, stored.kind


def _times(layer: Layer | None) -> int:
    return 1 if layer is None else layer.times


def _stood_for(stretch: _Stretch) -> tuple[int, str, int, bool] | None:
    """What stretches have in common that are repeated together; None where they are not."""
    layer = stretch.phase.layer
    if layer is None or layer.times == 1:
        return None
    return layer.times, layer.stack, stretch.phase.batch, stretch.phase.name == "forward"


def _words(phase: Phase, repeat: int, passes: int) -> str:
    words = phase.name
    if passes > 1 and phase.name != "optimizer":
        words = f"{words} of pass {phase.batch + 1} of {passes}"
    return words if phase.layer is None else f"{words}, {phase.layer.named(repeat)}"


def _moment(words: str, at: Sequence[int], lifted: Sequence[int]) -> Moment:
    total = (a + b for a, b in zip(at, lifted, strict=True))
    return Moment(words, dict(zip(KINDS, total, strict=True)))
