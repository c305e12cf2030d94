"""Lines with an indent: wrapped on a terminal, whole in a pipe, where nothing should break them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["indented"]


def indented(text: Text, console: Console, indent: int, first: int | None = None) -> Iterator[Text]:
    """The lines of `text`, each behind `indent` spaces; the first one behind `first`."""
    from rich.text import Text

    start = indent if first is None else first
    for line in text.split("\n", allow_blank=True):
        parts = (
            line.wrap(console, max(20, console.width - indent)) if console.is_terminal else [line]
        )
        for part in parts or [line]:
            yield Text(" " * start) + part
            start = indent
