"""Rows -> what a classifier learns: the label of a text, or the tag of each token."""

from __future__ import annotations

from typing import Any

from graft.data.formats.cells import kind_of, require_text, text_of
from graft.data.rows import Row
from graft.errors import DataError

__all__ = ["read_label", "read_tags"]


def read_label(row: Row) -> tuple[str, str | None, str]:
    """Text, second text (or None) and label of `row`.

    Raises:
        DataError: No text, no label, or a label that is neither text nor a whole number.
    """
    text, label = text_of(row, "text"), row.get("label")
    require_text(text, "text")
    if label is None or label == "":
        raise DataError("no label: add it, or remove the row.")
    pair = text_of(row, "text_pair") if row.get("text_pair") is not None else None
    return text, pair, _name(label, "the label")


def read_tags(row: Row) -> tuple[list[str], list[str]]:
    """The tokens of `row`, and the tag of each.

    Raises:
        DataError: No lists, lists of different lengths, or values that are not text.
    """
    tokens, tags = (_list(row, column) for column in ("tokens", "tags"))
    if len(tokens) != len(tags):
        raise DataError(f"{len(tags)} tags for {len(tokens)} tokens: each token needs one.")
    if not tokens:
        raise DataError("tokens is empty: fill it in, or remove the row.")
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str):
            raise DataError(f"tokens, entry {number}: expected text, not {kind_of(token)}.")
    return tokens, [_name(tag, f"tag {number}") for number, tag in enumerate(tags, 1)]


def _list(row: Row, column: str) -> list[Any]:
    values = row.get(column)
    if not isinstance(values, list):
        raise DataError(f"{column}: expected a list, not {kind_of(values)}.")
    return values


def _name(label: Any, what: str) -> str:
    if isinstance(label, float) and label != label:
        raise DataError(f"{what} is NaN (a missing value): fill it in, or remove the row.")
    if not isinstance(label, str | int) or label == "":
        raise DataError(f"{what} is {label!r}: expected text or a whole number.")
    return str(label)
