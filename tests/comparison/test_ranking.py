from __future__ import annotations

from dataclasses import replace

from comparison.made import made
from graft.comparison.ranking import ordered, verdict


def order_of(found):
    return [(group.point.name, group.rank) for group in ordered(found)]


def test_points_that_differ_beyond_chance_are_ranked():
    found = made({"c": [3.0, 3.1], "a": [1.0, 1.1], "b": [2.0, 2.1]})
    assert order_of(found) == [("a", 1), ("b", 2), ("c", 3)]
    (sentence,) = verdict(found)
    assert sentence.startswith("Ranked by loss, lower is better")


def test_where_spreads_overlap_it_says_of_whom():
    # b overlaps a and c, which do not overlap each other; d is worse than all for sure.
    found = made({"a": [1.0, 1.4], "b": [1.3, 1.8], "c": [1.7, 2.0], "d": [5.0, 5.1]})
    assert order_of(found) == [("a", 1), ("b", 1), ("c", 2), ("d", 4)]
    assert verdict(found)[1:] == [
        "Not to be told apart: a and b.",
        "Not to be told apart: b and c.",
    ]


def test_no_ranking_where_all_overlap():
    found = made({"a": [1.0, 2.0], "b": [1.5, 1.6], "c": [1.55, 3.0]})
    assert not found.is_ranked
    assert verdict(found) == ["No ranking by loss: the seeds of all points overlap."]


def test_no_ranking_from_one_seed():
    found = made({"b": [2.0], "a": [1.0]})
    assert order_of(found) == [("b", None), ("a", None)]  # as in the run file
    (sentence,) = verdict(found)
    assert sentence.startswith("No ranking by loss: each point has one seed")
    assert "compare: {seeds: 3}" in sentence


def test_failures_are_told_and_a_point_left_with_one_seed_is_not_ranked():
    found = made({"a": [1.0, 1.1], "b": [2.0, None], "c": [3.0, 3.1], "d": [None, None]})
    assert order_of(found)[-2:] == [("b", None), ("d", None)]
    said = verdict(found)
    assert "Not ranked, as it has one seed: b." in said
    assert said[-2:] == [
        "Failed: b with seed 1: The loss is gone.",
        "Failed: d with seeds 0 and 1: The loss is gone.",
    ]


def test_higher_may_be_better():
    found = made({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [2.05, 2.2]})
    groups = [
        replace(g, figures={"accuracy": g.figures["loss"]}, rank=2 if g.point.name == "a" else 1)
        for g in found.groups
    ]
    found = replace(found, metric="accuracy", groups=tuple(groups))
    assert [name for name, _ in order_of(found)] == ["c", "b", "a"]
    assert verdict(found)[0].startswith("Ranked by accuracy, higher is better")
    assert verdict(found)[1:] == ["Not to be told apart: b and c."]


def test_what_is_not_done_is_said():
    assert verdict(made({"a": [1.0, 1.1]}, planned=6)) == ["Not done yet: 4 of 6 runs."]


def test_a_single_point_is_not_ranked():
    assert verdict(made({"a": [1.0, 1.1]})) == []
