"""What may be said of who is better, in words: a ranking, or why there is none.

Which points can be told apart was found out by `spread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graft.comparison.results import Comparison, Group

__all__ = ["ordered", "verdict"]


def ordered(found: Comparison) -> list[Group]:
    """The points, the best first; those without a rank come last, as the run file has them."""
    sign = -1 if found.higher_is_better else 1

    def place(group: Group) -> tuple[float, float]:
        if group.rank is None:
            return float("inf"), 0.0
        return group.rank, sign * group.figures[found.metric].mean

    return sorted(found.groups, key=place)


def verdict(found: Comparison) -> list[str]:
    """Sentences: what the ranking is by, who cannot be told apart, who failed or is not done."""
    done = len(found.rows)
    under_way = [f"Not done yet: {found.planned - done} of {found.planned} runs."]
    return [*_ranking(found), *_failures(found), *(under_way if done < found.planned else [])]


def _ranking(found: Comparison) -> Iterator[str]:
    judged = [group for group in found.groups if found.metric in group.figures]
    ranked = [group for group in judged if group.rank is not None]
    measure = found.metric.replace("_", " ")
    if len(judged) < 2:
        return
    if not ranked:
        yield (
            f"No ranking by {measure}: each point has one seed, so nobody knows how much of a "
            "difference is chance. `compare: {seeds: 3}` trains each point three times."
        )
        return
    alike = _alike(found, ranked)
    if any(len(names) == len(judged) for names in alike):
        yield f"No ranking by {measure}: the seeds of all points overlap."
        return
    better = "higher" if found.higher_is_better else "lower"
    yield (
        f"Ranked by {measure}, {better} is better: a point is better than another if all of its "
        "seeds are better than every seed of the other."
    )
    for names in alike:
        yield f"Not to be told apart: {_listed(names)}."
    for group in judged:
        if group.rank is None:
            yield f"Not ranked, as it has one seed: {group.point.name}."


def _alike(found: Comparison, ranked: Sequence[Group]) -> list[list[str]]:
    """The largest sets of points whose spreads share a value, best first."""
    spreads = {group.point.name: group.figures[found.metric] for group in ranked}
    sets: list[list[str]] = []
    for edge in sorted({spread.high for spread in spreads.values()}):
        names = [name for name, spread in spreads.items() if spread.low <= edge <= spread.high]
        if len(names) > 1 and not any(set(names) <= set(other) for other in sets):
            sets = [other for other in sets if not set(other) <= set(names)] + [names]
    return sets[::-1] if found.higher_is_better else sets


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _failures(found: Comparison) -> Iterator[str]:
    seeds: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        if row.measured is None:
            seeds.setdefault((row.point, row.error), []).append(str(row.seed))
    for (point, error), own in seeds.items():
        those = f"seed {own[0]}" if len(own) == 1 else f"seeds {_listed(own)}"
        yield f"Failed: {point} with {those}: {error}"
