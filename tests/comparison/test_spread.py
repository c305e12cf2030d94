"""Seeds summed up, and points ranked only where their spreads part them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from statistics import fmean

import pytest

from graft.comparison.results import Inference, Measured, Point, Row
from graft.comparison.spread import better, group_rows, spread

MEASURED = Measured(
    quality={"loss": 1.0},
    forgetting=None,
    trainable_parameters=10,
    all_parameters=100,
    adapter_bytes=40,
    peak_bytes=None,
    average_bytes=None,
    high_bytes=None,
    steps=3,
    rows=12,
    tokens=60,
    seconds=2.0,
    total_seconds=5.0,
    tokens_per_second=30.0,
    inference=Inference("tokens/s", 50.0, None, "nothing to merge"),
    samples=(),
    log=(),
)


def rows(point: str, *losses: float | None) -> list[Row]:
    """A row for each loss; None is one that failed."""
    return [
        Row(
            point=point,
            seed=seed,
            folder=f"{point}/seed-{seed}",
            config={},
            peft_config=None,
            data_sha256={},
            created_at="",
            measured=None if loss is None else replace(MEASURED, quality={"loss": loss}),
            error="" if loss is not None else "no number",
        )
        for seed, loss in enumerate(losses)
    ]


def groups(higher_is_better: bool = False, **losses: tuple[float | None, ...]) -> dict:
    points = [Point(name, name, "lora", {}) for name in losses]
    every = [row for name, own in losses.items() for row in rows(name, *own)]
    found = group_rows(points, every, "loss", higher_is_better)
    return {group.point.name: group for group in found}


def test_a_spread_is_mean_lowest_and_highest():
    assert spread([3.0, 1.0, 2.5]) == spread([1.0, 2.5, 3.0])
    found = spread([3.0, 1.0, 2.5])
    assert (found.mean, found.low, found.high) == (fmean([3.0, 1.0, 2.5]), 1.0, 3.0)


def test_better_means_every_seed():
    draws = list(itertools.product([1.0, 2.0, 3.0], repeat=2))
    for one, other in itertools.product(draws, repeat=2):
        brute = all(a < b for a in one for b in other)
        assert better(spread(one), spread(other), False) == brute
        assert better(spread(other), spread(one), True) == brute


def test_points_whose_spreads_part_are_ranked():
    found = groups(a=(1.0, 1.2), b=(2.0, 2.2), c=(3.0, 3.1))
    assert [found[name].rank for name in "abc"] == [1, 2, 3]
    assert all(group.alike == () for group in found.values())
    found = groups(True, a=(1.0, 1.2), b=(2.0, 2.2), c=(3.0, 3.1))
    assert [found[name].rank for name in "abc"] == [3, 2, 1]


def test_no_ranking_where_spreads_overlap():
    found = groups(a=(1.0, 2.0), b=(1.5, 2.5), c=(2.2, 4.0))
    # a and b cannot be told apart, nor b and c; but a is better than c for sure.
    assert [found[name].rank for name in "abc"] == [1, 1, 2]
    assert found["a"].alike == ("b",)
    assert found["b"].alike == ("a", "c")
    assert found["c"].alike == ("b",)


def test_equal_values_are_no_difference():
    found = groups(a=(1.0, 1.0), b=(1.0, 1.0))
    assert [group.rank for group in found.values()] == [1, 1]


def test_one_seed_ranks_nothing():
    found = groups(a=(1.0,), b=(9.0,))
    assert [group.rank for group in found.values()] == [None, None]
    assert found["a"].alike == ("b",)


def test_one_seed_among_points_with_several_has_no_spread_to_part_it():
    found = groups(a=(1.0, None), b=(8.0, 9.0), c=(10.0, 11.0))
    assert found["a"].rank is None
    assert [found[name].rank for name in "bc"] == [1, 2]
    assert "a" in found["b"].alike


def test_what_failed_is_counted_and_not_averaged():
    found = groups(a=(1.0, None, 3.0), b=(None, None, None))
    assert (found["a"].seeds, found["a"].failed) == ((0, 2), 1)
    assert found["a"].figures["loss"] == spread([1.0, 3.0])
    assert (found["b"].seeds, found["b"].failed, found["b"].rank) == ((), 3, None)
    assert found["b"].figures == {}


def test_what_was_not_measured_is_no_figure():
    figures = groups(a=(1.0, 2.0))["a"].figures
    assert {"forgetting", "peak_bytes", "merged"} & figures.keys() == set()
    assert figures["unmerged"].mean == pytest.approx(50.0)


def test_groups_stand_in_the_order_of_the_points():
    points = [Point(name, name, "lora", {}) for name in "ab"]
    found = group_rows(points, [*rows("b", 1.0), *rows("a", 2.0)], "loss", False)
    assert [group.point.name for group in found] == ["a", "b"]
    assert [g.point.name for g in group_rows(points, rows("b", 1.0), "loss", False)] == ["b"]
