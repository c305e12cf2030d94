"""Scores beyond the loss: entities of tagged words, spans of answers.

Each is a share from 0 to 1. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from graft.data.spans import Span

__all__ = ["are_bio", "entities", "entity_f1", "span_scores"]


def are_bio(names: Sequence[str]) -> bool:
    """Whether `names` are tags of entities: `B-` and `I-` with a kind, and what is outside."""
    inside = [name for name in names if name[:2] in ("B-", "I-")]
    return bool(inside) and len(names) - len(inside) <= 1


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that BIO tags name: kind, first word, word after the last.

    As conlleval reads them: an `I-` after nothing, or after another kind, begins an entity too.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for at, tag in enumerate([*tags, "O"]):
        prefix, name = tag[:2], tag[2:] if tag[:2] in ("B-", "I-") else ""
        if kind and (prefix == "B-" or name != kind):
            found.add((kind, start, at))
            kind = ""
        if name and not kind:
            kind, start = name, at
    return found


def entity_f1(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> float:
    """F1 over the entities of all rows: one counts where kind and borders are right.

    1 where there are none and none is named.
    """
    both = found = true = 0
    for guess, truth in zip(predicted, right, strict=True):
        named, there = entities(guess), entities(truth)
        both += len(named & there)
        found += len(named)
        true += len(there)
    return 2 * both / (found + true) if found + true else 1.0


def span_scores(predicted: Span | None, right: Span | None) -> tuple[float, float]:
    """Whether a span is the right one, and the F1 of its tokens; None is no answer."""
    if predicted is None or right is None:
        same = float(predicted is right)
        return same, same
    shared = min(predicted.last, right.last) - max(predicted.first, right.first) + 1
    length = sum(span.last - span.first + 1 for span in (predicted, right))
    return float(predicted == right), 2 * max(shared, 0) / length
