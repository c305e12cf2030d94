"""What is learned from a row: for each kind of learning, how rows are read and become examples.

A new kind is one class here and one line in `make_task`. Files, splitting and counting are left
to `prepare`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.formats import read_label, read_messages, read_pair, read_text
from graft.data.sources import Row
from graft.data.template import IGNORED, Encoder, Tokens, end_of_text, find_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Example", "Task", "make_task"]


class Example(NamedTuple):
    """One row of the result: its columns, and whether it was cut to the length."""

    columns: dict[str, Any]
    truncated: bool = False


class Task(ABC):
    """How a row is read, and how what was read becomes examples.

    Attributes:
        limit: Most tokens in an example.
        chat_template: What renders turns; None where texts are taken as they stand.
    """

    chat_template: str | None = None

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
        """The examples of what `read` returned; None for one in which nothing is left to learn.

        Examples that must not be parted between training and evaluation come in one list.
        """


class _Responses(Task):
    """CAUSAL_LM: learn the responses of conversations, or completions of prompts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        # Pairs need no turns: where the tokenizer has no template they are joined as they are.
        if format_name != "prompt_completion" or tokenizer.chat_template is not None:
            self.chat_template = find_chat_template(tokenizer)
        self._encoder = Encoder(tokenizer, self.chat_template)
        self._learn_all = config.train_on == "all"

    def read(self, row: Row) -> list[list[str]]:
        if self.chat_template is None:
            return [list(read_pair(row, self.format))]
        return self._encoder.conversation(read_messages(row, self.format))

    def encode(self, items: list[list[list[str]]]) -> list[list[Example | None]]:
        flat = [pieces for item in items for pieces in item]
        encoded = iter(self._encoder.encode(flat, self._learn_all))
        return [[_causal(next(encoded), self.limit) for _ in item] for item in items]


class _Text(Task):
    """CAUSAL_LM: learn every token of a text, in blocks."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        self._encoder = Encoder(tokenizer, None)

    def read(self, row: Row) -> str:
        return read_text(row)

    def encode(self, items: list[str]) -> list[list[Example | None]]:
        out: list[list[Example | None]] = []
        for blocks in self._encoder.encode_texts(items, self.limit):
            out += [[_causal(block, self.limit)] for block in blocks] or [[None]]
        return out


class _Classes(Task):
    """SEQ_CLS: learn the label of a text or of a pair of texts."""

    def read(self, row: Row) -> tuple[str, str | None, str]:
        return read_label(row)

    def encode(self, items: list[tuple[str, str | None, str]]) -> list[list[Example | None]]:
        out: list[list[Example | None]] = []
        for paired, run in groupby(items, key=lambda item: item[1] is not None):
            texts, pairs, labels = zip(*run, strict=True)
            inputs = _inputs(self.tokenizer, list(texts), list(pairs) if paired else None)
            for i, label in enumerate(labels):
                columns = {name: column[i] for name, column in inputs.items()}
                truncated = len(columns["input_ids"]) > self.limit
                if truncated:  # by the tokenizer, which keeps its special tokens
                    pair = [pairs[i]] if paired else None
                    cut = _inputs(self.tokenizer, [texts[i]], pair, max_length=self.limit)
                    columns = {name: column[0] for name, column in cut.items()}
                arrays = {name: _ids(values) for name, values in columns.items()}
                out.append([Example({**arrays, "labels": label}, truncated)])
        return out


class _Targets(Task):
    """SEQ_2_SEQ_LM: learn the target of a source."""

    def read(self, row: Row) -> tuple[str, str]:
        return read_pair(row, self.format)

    def encode(self, items: list[tuple[str, str]]) -> list[list[Example | None]]:
        sources = [source for source, _ in items]
        whole = _inputs(self.tokenizer, sources)["input_ids"]
        cut = _inputs(self.tokenizer, sources, max_length=self.limit)["input_ids"]
        targets = self.tokenizer(text_target=[target for _, target in items], verbose=False)
        out: list[list[Example | None]] = []
        for before, after, target in zip(whole, cut, targets["input_ids"], strict=True):
            if target[-1:] != [end := end_of_text(self.tokenizer)]:
                target = [*target, end]
            columns = {"input_ids": _ids(after), "labels": _ids(target[: self.limit])}
            out.append([Example(columns, len(before) > len(after) or len(target) > self.limit)])
        return out


def make_task(
    tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str, task_type: TaskType
) -> Task:
    """What to learn from rows of `format_name` for `task_type`."""
    if task_type is TaskType.SEQ_CLS:
        kind = _Classes
    elif task_type is TaskType.SEQ_2_SEQ_LM:
        kind = _Targets
    else:
        kind = _Text if format_name == "text" else _Responses
    return kind(tokenizer, config, format_name)


def _causal(tokens: Tokens, limit: int) -> Example | None:
    ids, labels = (_ids(column[:limit]) for column in tokens)
    # The label of the first token is learned by nothing: no token comes before it.
    if (labels[1:] == IGNORED).all():
        return None
    return Example({"input_ids": ids, "labels": labels}, len(tokens.input_ids) > limit)


def _inputs(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None = None,
    max_length: int | None = None,
) -> dict[str, list[list[int]]]:
    """The tokenizer's columns for `texts` (but for the mask, which is made when padding)."""
    encoding = tokenizer(
        texts,
        pairs,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    return dict(encoding)


def _ids(values: list[int]) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)
