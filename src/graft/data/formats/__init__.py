"""What the columns of a row mean: telling the format, and reading rows by it.

A new format is one entry in `layouts.FORMATS` and one reader: of turns (`conversations`), of labels
(`labels`) or of questions (`questions`). What is read is made tokens by `template` and `tasks`.
"""

from graft.data.formats.conversations import (
    Message,
    read_messages,
    read_pair,
    read_text,
    read_tools,
)
from graft.data.formats.labels import read_label, read_tags
from graft.data.formats.layouts import (
    FORMATS,
    Format,
    find_format,
    read_batches,
    rename_columns,
    suggest_columns,
)
from graft.data.formats.questions import Question, read_question

__all__ = [
    "FORMATS",
    "Format",
    "Message",
    "Question",
    "find_format",
    "read_batches",
    "read_label",
    "read_messages",
    "read_pair",
    "read_question",
    "read_tags",
    "read_text",
    "read_tools",
    "rename_columns",
    "suggest_columns",
]
