"""Where in a text an answer stands: from what a model says of each window to one span.

Both evaluation and inference read a model's answer this way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Reading", "Span", "best_span", "read_window", "unanswered"]


class Span(NamedTuple):
    """Tokens of a text, from the first to the last one, both counted from its beginning."""

    first: int
    last: int


class Reading(NamedTuple):
    """What a model says of one window.

    Attributes:
        span: The likeliest span of the text in it.
        chance: Its probability: that of its first token times that of its last.
        nowhere: The probability that the answer is not in this window.
    """

    span: Span
    chance: float
    nowhere: float


def read_window(
    start_logits: Tensor, end_logits: Tensor, text: slice, nowhere: int, at: int
) -> Reading:
    """The likeliest span of one window.

    Args:
        start_logits: `[T]`, without padding; so are `end_logits`.
        text: The places of the text's tokens in the window.
        nowhere: The place that means: the answer is not here.
        at: The number of the window's first token of the text in the whole text.
    """
    starts, ends = start_logits.float().softmax(-1), end_logits.float().softmax(-1)  # [T]
    best, where = starts[text].cummax(-1)  # of the starts up to each end
    chances = best * ends[text]
    last = int(chances.argmax())
    return Reading(
        Span(at + int(where[last]), at + last),
        float(chances[last]),
        float(starts[nowhere] * ends[nowhere]),
    )


def best_span(windows: list[Reading]) -> Span | None:
    """The likeliest span of the windows of one text; None where it more likely has no answer."""
    best = max(windows, key=lambda window: window.chance)
    return None if unanswered(windows) > 0.5 else best.span


def unanswered(windows: list[Reading]) -> float:
    """The probability that the answer is in none of the windows of a text."""
    return math.prod(window.nowhere for window in windows)
