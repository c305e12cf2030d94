"""The preview as one file of HTML, which needs nothing but itself: no script, no font, no network.

The layout is `page.html`; that every text is escaped is jinja2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import jinja2

from graft.config import TaskType
from graft.data.preview.examples import Preview
from graft.data.preview.pieces import Piece, visible, words_of

__all__ = ["render_page"]


def render_page(previews: Sequence[Preview], model: str) -> str:
    """The HTML of `previews`, as the tokenizer of `model` made them."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"visible": visible, "told": _told, "words": words_of}
    source = files("graft.data.preview").joinpath("page.html").read_text(encoding="utf-8")
    tasks = {preview.task_type for preview in previews}
    return environment.from_string(source).render(
        previews=previews,
        model=model,
        marked="the answer" if TaskType.QUESTION_ANS in tasks else "trained",
    )


def _told(piece: Piece) -> str:
    """What a piece says of itself when it is pointed at."""
    return "   ".join(f"{i} {name}" for i, name in zip(piece.ids, piece.names, strict=True))
