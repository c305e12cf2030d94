"""Data as people see it before a run: rows as they will be trained, each token with its part in it.

`pieces` turns ids into text, `examples` takes rows of the files through the path that training
takes, `page` writes them as one file of HTML. The terminal is the command line's.
"""

from graft.data.preview.examples import Preview, Shown, Side, preview
from graft.data.preview.page import render_page
from graft.data.preview.pieces import Piece, words_of

__all__ = ["Piece", "Preview", "Shown", "Side", "preview", "render_page", "words_of"]
