from __future__ import annotations

import pytest
import torch

from graft.data.spans import Reading, Span, best_span, read_window, unanswered


@pytest.mark.parametrize("seed", range(20))
def test_the_best_span_is_that_of_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    starts, ends = torch.randn(2, 15, generator=generator).double() * 3
    first, stop, at = 4, 13, 7
    reading = read_window(starts, ends, slice(first, stop), 0, at)
    p, q = starts.softmax(-1), ends.softmax(-1)
    chances = {
        Span(at + i - first, at + j - first): float(p[i] * q[j])
        for i in range(first, stop)
        for j in range(i, stop)
    }
    best = max(chances, key=lambda span: chances[span])
    assert reading.span == best
    assert reading.chance == pytest.approx(chances[best], rel=1e-5)
    assert reading.nowhere == pytest.approx(float(p[0] * q[0]), rel=1e-5)


def test_the_likeliest_window_answers() -> None:
    windows = [Reading(Span(1, 2), 0.2, 0.7), Reading(Span(9, 9), 0.6, 0.1)]
    assert best_span(windows) == Span(9, 9)
    assert best_span([*windows, Reading(Span(20, 21), 0.05, 0.9)]) == Span(9, 9)


def test_no_answer_where_it_is_likely_in_no_window() -> None:
    assert unanswered([Reading(Span(1, 2), 0.01, 0.9), Reading(Span(9, 9), 0.1, 0.8)]) == 0.9 * 0.8
    assert best_span([Reading(Span(1, 2), 0.01, 0.9), Reading(Span(9, 9), 0.1, 0.8)]) is None
    assert best_span([Reading(Span(1, 2), 0.01, 0.9), Reading(Span(9, 9), 0.1, 0.5)]) == Span(9, 9)


@pytest.mark.parametrize("windows", [2, 5, 40])
def test_a_model_that_knows_only_how_often_windows_answer_gives_an_answer(windows: int) -> None:
    """Where each text has one answer and the model has learned no more than that."""
    readings = [Reading(Span(at, at), 1 / windows, 1 - 1 / windows) for at in range(windows)]
    assert best_span(readings) is not None
