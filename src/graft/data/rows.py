"""Rows as they were read: plain dicts, each with the place it came from.

How they are read is left to `sources`, what their columns mean to `formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Row", "Rows"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one or several files, in order.

    Attributes:
        items: One dict (column -> value) a row; rows need not have the same columns.
        files: Each file with the number of rows that came from it.
    """

    items: list[Row]
    files: list[tuple[Path, int]]

    @property
    def name(self) -> str:
        """The files, for messages."""
        first, *others = [str(path) for path, _ in self.files]
        return f"{first} (and {len(others)} more)" if others else first

    @property
    def columns(self) -> list[str]:
        """Every column that any row has, in order of appearance."""
        seen: dict[str, None] = {}
        for row in self.items:
            if not row.keys() <= seen.keys():
                seen |= dict.fromkeys(row)
        return list(seen)

    def place(self, index: int) -> tuple[Path, int]:
        """The file of the row `index`, and the row within it, counted from 1."""
        for path, count in self.files:
            if index < count:
                return path, index + 1
            index -= count
        raise IndexError(index)

    def where(self, index: int) -> str:
        """`"row 3 of FILE"` for the row `index`."""
        path, row = self.place(index)
        return f"row {row} of {path}"
