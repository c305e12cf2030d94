"""The preview as one file of HTML, laid out by `page.html.j2`."""

from __future__ import annotations

from collections.abc import Sequence

from graft.config import TaskType
from graft.data.preview.examples import Preview
from graft.data.preview.pieces import Piece, words_of
from graft.pages import render

__all__ = ["render_page"]


def render_page(previews: Sequence[Preview], model: str) -> str:
    """The HTML of `previews`, as the tokenizer of `model` made them."""
    tasks = {preview.task_type for preview in previews}
    return render(
        "graft.data.preview",
        "page.html.j2",
        {"told": _told, "words": words_of},
        previews=previews,
        model=model,
        marked="the answer" if TaskType.QUESTION_ANS in tasks else "trained",
    )


def _told(piece: Piece) -> str:
    """What a piece says of itself when it is pointed at."""
    return "   ".join(f"{i} {name}" for i, name in zip(piece.ids, piece.names, strict=True))
