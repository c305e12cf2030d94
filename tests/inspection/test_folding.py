"""Paths in short."""

from __future__ import annotations

import pytest

from graft.inspection import fold_paths, ranges
from graft.inspection import folded as folded_with_counts


@pytest.mark.parametrize(
    ("paths", "folded"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], ["a.{0-2}.b"]),
        (["a.0.b", "a.0.c", "a.1.b"], ["a.{0-1}.b", "a.0.c"]),
        (["a.10.b", "a.9.b", "a.2.b"], ["a.{2,9-10}.b"]),
        (["0", "1", "head"], ["{0-1}", "head"]),
        ([f"l.{i}.e.{j}.w" for i in (0, 1) for j in (0, 1, 3)], ["l.{0-1}.e.{0-1,3}.w"]),
        (["l.0.e.0.w", "l.0.e.1.w", "l.1.e.1.w"], ["l.0.e.{0-1}.w", "l.1.e.1.w"]),
        (["layer1.x", "layer2.x"], ["layer1.x", "layer2.x"]),
        ([], []),
    ],
)
def test_paths_are_folded_by_their_indices(paths, folded):
    assert fold_paths(paths) == folded
    assert [text for text, _ in folded_with_counts(paths)] == folded
    assert sum(count for _, count in folded_with_counts(paths)) == len(paths)


def test_ranges():
    assert ranges([3, 0, 1, 5, 4]) == "0-1,3-5"
    assert ranges([]) == ""
