"""What all kinds of learning share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from graft.data.config import DataConfig
from graft.data.rows import Row
from graft.data.template import IGNORED, Tokens
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Example", "Task", "array", "causal_example", "inputs_of", "require_offsets"]


class Example(NamedTuple):
    """What is learned from a row, or from a part of it.

    Attributes:
        columns: What the collator takes.
        truncated: Whether it was cut to the length.
        answer_cut: Whether something that is learned was lost by that: a response, its end, a
            label.
    """

    columns: dict[str, Any]
    truncated: bool = False
    answer_cut: bool = False


class Task(ABC):
    """How a row is read, and how what was read becomes examples.

    Attributes:
        tokenizer: The base model's.
        format: How the rows are laid out.
        limit: Most tokens in an example.
        chat_template: What renders turns; None where texts are taken as they stand.
        parts_rows: Whether the examples of one row may be parted between training and evaluation,
            and count as rows.
    """

    chat_template: str | None = None
    parts_rows: ClassVar[bool] = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        self.tokenizer = tokenizer
        self.format = format_name
        # Beyond model_max_length the base model has no positions.
        self.limit = min(config.max_length, tokenizer.model_max_length)

    @abstractmethod
    def read(self, row: Row) -> Any:
        """What is to be encoded of `row`; a DataError says why the row cannot be used."""

    @abstractmethod
    def encode(self, items: list[Any]) -> list[list[Example | None]]:
        """The examples of each thing that `read` returned; None for one with nothing to learn."""


def causal_example(tokens: Tokens, limit: int) -> Example | None:
    """`tokens` cut to `limit`; None where nothing is left to learn."""
    ids, labels = (array(column[:limit]) for column in tokens)
    # The label of the first token is learned by nothing: no token comes before it.
    if (labels[1:] == IGNORED).all():
        return None
    lost = tokens.labels[limit:]
    return Example(
        {"input_ids": ids, "labels": labels}, bool(lost), any(label != IGNORED for label in lost)
    )


def inputs_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None = None,
    max_length: int | None = None,
    **options: Any,
) -> dict[str, list[Any]]:
    """The tokenizer's columns for `texts` (but for the mask, which is made when padding)."""
    encoding = tokenizer(
        texts,
        pairs,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
        **options,
    )
    return dict(encoding)


def array(values: list[int]) -> np.ndarray:
    """Ids or labels, as `encoding` keeps them."""
    return np.asarray(values, dtype=np.int32)


def require_offsets(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Refuse a tokenizer without offsets, for a task that reads marks of a text.

    Args:
        tokenizer: The base model's.
        what: What needs them, in the plural.

    Raises:
        DataError: The tokenizer does not say where in the text its tokens are.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{what} need to know where in the text each token is, and {type(tokenizer).__name__} "
            "is a slow tokenizer, which does not tell: take a model with a tokenizer.json."
        )
