"""Several seeds of a point -> mean and spread, and which points can be told apart by them.

A spread is the lowest and the highest value over the seeds. Of two points one is better if all of
its seeds are better than every seed of the other: with three seeds each, chance alone does that to
one pair in ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from graft.comparison.results import Group, Measured, Point, Row, Spread

__all__ = ["better", "group_rows", "spread"]


def spread(values: Sequence[float]) -> Spread:
    """Mean, lowest and highest of `values`."""
    return Spread(fmean(values), min(values), max(values))


def better(one: Spread, other: Spread, higher_is_better: bool) -> bool:
    """Whether every seed of `one` is better than every seed of `other`."""
    return one.low > other.high if higher_is_better else one.high < other.low


def group_rows(
    points: Sequence[Point], rows: Sequence[Row], metric: str, higher_is_better: bool
) -> tuple[Group, ...]:
    """One group a point that has rows, ranked by `metric`.

    Args:
        points: In the order in which they shall stand.
        rows: Of these points, in any order.
        metric: A measure of quality.
        higher_is_better: Whether more of it is better.
    """
    found: list[Group] = []
    for point in points:
        own = [row for row in rows if row.point == point.name]
        seeds = tuple(row.seed for row in own if row.measured is not None)
        if own:
            found.append(Group(point, seeds, len(own) - len(seeds), _figures(own), None, ()))
    # A single seed tells nothing of chance: how wide its spread would be, nobody knows.
    judged = [group for group in found if len(group.seeds) > 1]
    return tuple(_ranked(group, found, judged, metric, higher_is_better) for group in found)


def _ranked(
    group: Group, every: Sequence[Group], judged: Sequence[Group], metric: str, higher: bool
) -> Group:
    """`group` among the others."""
    if not group.seeds:
        return group
    own, rank = group.figures[metric], None
    apart = {group.point.name}
    if group in judged:
        surer = [g for g in judged if better(g.figures[metric], own, higher)]
        worse = [g for g in judged if better(own, g.figures[metric], higher)]
        rank = 1 + len(surer)
        apart |= {g.point.name for g in (*surer, *worse)}
    alike = tuple(g.point.name for g in every if g.seeds and g.point.name not in apart)
    return replace(group, rank=rank, alike=alike)


def _figures(rows: Sequence[Row]) -> dict[str, Spread]:
    """Each figure over the seeds in which it was measured."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in _values(row.measured).items() if row.measured is not None else ():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: spread(found) for name, found in values.items()}


def _values(measured: Measured) -> dict[str, float | None]:
    return {
        **measured.quality,
        "forgetting": measured.forgetting,
        "trainable_parameters": measured.trainable_parameters,
        "adapter_bytes": measured.adapter_bytes,
        "peak_bytes": measured.peak_bytes,
        "seconds": measured.seconds,
        "tokens_per_second": measured.tokens_per_second,
        "unmerged": measured.inference.unmerged,
        "merged": measured.inference.merged,
    }
