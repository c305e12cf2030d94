"""Entities are found again by brute force: every span of every kind is tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.data.spans import Span
from graft.training.metrics import are_bio, entities, entity_f1, span_scores

tags = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=9)


def by_brute_force(words: list[str]) -> set[tuple[str, int, int]]:
    """Every stretch that begins an entity, goes on, and ends."""

    def begins(at: int) -> bool:
        tag, before = words[at], words[at - 1] if at else "O"
        return tag[0] == "B" or (tag[0] == "I" and before[1:] != tag[1:])

    return {
        (kind, start, stop)
        for kind in "ab"
        for start in range(len(words))
        for stop in range(start + 1, len(words) + 1)
        if words[start][2:] == kind
        and begins(start)
        and all(words[at] == f"I-{kind}" for at in range(start + 1, stop))
        and (stop == len(words) or words[stop] != f"I-{kind}")
    }


@given(words=tags)
def test_entities(words: list[str]) -> None:
    assert entities(words) == by_brute_force(words)


@given(rows=st.lists(st.tuples(tags, tags), max_size=4))
def test_entity_f1(rows: list[tuple[list[str], list[str]]]) -> None:
    rows = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in rows]
    said = [{(row, *e) for e in by_brute_force(a)} for row, (a, _) in enumerate(rows)]
    true = [{(row, *e) for e in by_brute_force(b)} for row, (_, b) in enumerate(rows)]
    named, there = set().union(*said), set().union(*true)
    f1 = entity_f1([a for a, _ in rows], [b for _, b in rows])
    if not named and not there:
        assert f1 == 1
    elif not named & there:
        assert f1 == 0
    else:
        precision, recall = len(named & there) / len(named), len(named & there) / len(there)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_sentence_by_hand() -> None:
    words = ["B-per", "I-per", "O", "B-loc", "B-loc", "I-org", "I-org"]
    assert entities(words) == {("per", 0, 2), ("loc", 3, 4), ("loc", 4, 5), ("org", 5, 7)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["B-a", "I-a", "O"], True),
        (["B-a", "I-a"], True),
        (["NOUN", "VERB", "O"], False),
        (["B-a", "E-a", "S-a", "O"], False),
        (["0", "1"], False),
    ],
)
def test_which_tags_are_bio(names: list[str], expected: bool) -> None:
    assert are_bio(names) is expected


@given(spans=st.tuples(*[st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)] * 2))
def test_scores_of_spans(spans: tuple[list[int], list[int]]) -> None:
    said, right = (set(range(first, last + 1)) for first, last in spans)
    exact, f1 = span_scores(Span(*spans[0]), Span(*spans[1]))
    assert exact == float(said == right)
    shared = len(said & right)
    if shared:
        precision, recall = shared / len(said), shared / len(right)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert f1 == 0


def test_no_answer_is_right_where_there_is_none() -> None:
    assert span_scores(None, None) == (1, 1)
    assert span_scores(None, Span(1, 2)) == span_scores(Span(1, 2), None) == (0, 0)
