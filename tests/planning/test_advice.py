from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from graft.planning.advice import _Search
from graft.planning.case import Way
from graft.planning.formulas import BASES


class Search(_Search):
    """A search in which a way fits from `least` parts on."""

    def __init__(self, size: int) -> None:
        source: Any = SimpleNamespace(batch_size=size)
        own: Any = SimpleNamespace(
            way=Way(BASES[0]),
            memory=SimpleNamespace(weights=0),
            learner=SimpleNamespace(name="own"),
            kept=0,
        )
        super().__init__(SimpleNamespace(source=source), own, SimpleNamespace())  # pyright: ignore
        self.least = 1
        self.asked: list[int] = []

    def fits(self, way: Way, learner: Any = None) -> bool:
        self.asked.append(way.parts)
        return way.parts >= self.least


@pytest.mark.parametrize("first", [1, 2, 3, 8, 24, 25])
@pytest.mark.parametrize("second", [1, 2, 3, 8, 24, 25])
def test_the_fewest_parts_are_found_whatever_was_found_before(first, second):
    search = Search(24)
    for least in (first, second):
        search.least = least
        found = search.fewest_parts(Way(BASES[0]))
        fitting = [parts for parts in (1, 2, 3, 4, 6, 8, 12, 24) if parts >= least]
        assert (None if found is None else found.parts) == next(iter(fitting), None)


def test_what_was_enough_before_is_asked_about_first():
    search = Search(64)
    search.least = 8
    search.fewest_parts(Way(BASES[0]))
    search.asked.clear()
    search.fewest_parts(Way(BASES[1]))
    assert search.asked == [8, 4]
