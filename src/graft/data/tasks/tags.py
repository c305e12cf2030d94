"""TOKEN_CLS: learn the tag of each word, at its first token.

Words are tokenised as the text that they make with spaces between, so that every tokenizer sees
them as it saw its training text (a byte-level one with the space in front, the first word without);
offsets then say which token is whose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from graft.data.config import DataConfig
from graft.data.formats import read_tags
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, array, inputs_of, require_offsets
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Tags", "Words", "encode_words"]


class Words(NamedTuple):
    """Words as tokens.

    Attributes:
        columns: The tokenizer's columns for them.
        first: The place of each word's first token; None for one without any: it was cut off, or
            is made of characters that the tokenizer leaves out.
        truncated: Whether the text was cut.
        lost: How many words were cut off.
    """

    columns: dict[str, list[int]]
    first: list[int | None]
    truncated: bool
    lost: int


class Tags(Task):
    """Learn the tag of each word."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        require_offsets(tokenizer, "Tags of words")

    def read(self, row: Row) -> tuple[list[str], list[str]]:
        return read_tags(row)

    def encode(self, items: list[tuple[list[str], list[str]]]) -> list[list[Example | None]]:
        words = encode_words(self.tokenizer, [words for words, _ in items], self.limit)
        return [[_example(coded, tags)] for coded, (_, tags) in zip(words, items, strict=True)]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[str]], limit: int
) -> list[Words]:
    """The words of each row as at most `limit` tokens.

    Raises:
        DataError: One token for two words.
    """
    texts = [" ".join(words) for words in rows]
    whole = inputs_of(tokenizer, texts, return_offsets_mapping=True)
    out: list[Words] = []
    for at, (text, words) in enumerate(zip(texts, rows, strict=True)):
        columns = {name: column[at] for name, column in whole.items()}
        first = _first_tokens(words, columns.pop("offset_mapping"))
        truncated, there = len(columns["input_ids"]) > limit, len(words) - first.count(None)
        if truncated:  # by the tokenizer, which keeps its special tokens
            cut = inputs_of(tokenizer, [text], max_length=limit, return_offsets_mapping=True)
            columns = {name: column[0] for name, column in cut.items()}
            first = _first_tokens(words, columns.pop("offset_mapping"))
        lost = there - (len(words) - first.count(None))
        out.append(Words(columns, first, truncated, lost))
    return out


def _first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int | None]:
    first: list[int | None] = [None] * len(words)
    starts, end = [], 0
    for word in words:
        starts.append(end)
        end += len(word) + 1
    word = 0
    for token, (start, stop) in enumerate(offsets):
        if start == stop:  # a special token
            continue
        while word < len(words) and starts[word] + len(words[word]) <= start:
            word += 1
        if word == len(words) or starts[word] >= stop:
            continue  # a space
        if word + 1 < len(words) and starts[word + 1] < stop and words[word + 1]:
            raise DataError(
                f"The tokenizer makes one token of the words {words[word]!r} and "
                f"{words[word + 1]!r}, so they cannot have a tag each: take another model."
            )
        if first[word] is None:
            first[word] = token
    return first


def _example(words: Words, tags: list[str]) -> Example | None:
    labels: list[str | None] = [None] * len(words.columns["input_ids"])
    for token, tag in zip(words.first, tags, strict=True):
        if token is not None:
            labels[token] = tag
    if not any(labels):
        return None
    columns: dict[str, Any] = {name: array(values) for name, values in words.columns.items()}
    return Example({**columns, "labels": labels}, words.truncated, words.lost > 0)
