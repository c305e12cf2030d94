"""Single values of a row: text, or a DataError that says what is there instead."""

from __future__ import annotations

from typing import Any

from graft.data.rows import Row
from graft.errors import DataError

__all__ = ["as_text", "kind_of", "require_text", "text_of"]

_KINDS = {dict: "an object", list: "a list", bool: "true or false", type(None): "nothing"}
_KINDS |= {str: "text", int: "a number", float: "a number"}


def text_of(row: Row, column: str) -> str:
    """The text in `column`; empty where there is none."""
    return as_text(row.get(column), column)


def as_text(value: Any, column: str) -> str:
    """`value` as text: numbers as they are written, nothing as the empty text.

    Raises:
        DataError: A value that is not text.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise DataError(f"{column}: expected text, not {kind_of(value)}.")


def require_text(text: str, column: str) -> None:
    """Refuse a text with nothing in it."""
    if not text.strip():
        raise DataError(f"{column} is empty: fill it in, or remove the row.")


def kind_of(value: Any) -> str:
    """What to call the kind of `value` in a message."""
    if isinstance(value, float) and value != value:
        return "NaN (a missing value)"
    return _KINDS.get(type(value), f"a {type(value).__name__}")
