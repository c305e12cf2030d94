"""What a model says to held-out inputs: samples to read, and how often an answer is exactly right.

Inputs are tokenised rows as training has them, so every model of a comparison reads the same ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.comparison.config import CompareConfig
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.spans import best_span, read_window
from graft.data.template import IGNORED
from graft.inference import Predictor, Sampling

__all__ = ["Answers", "answers_to", "prompt_and_answer"]

_SHARE = 3  # of a row of plain text the first third is shown, and the model goes on
_MOST_SHOWN = 64  # tokens of plain text that are


class Answers(ABC):
    """Inputs, what the data says to them, and what a model says.

    Attributes:
        prompts: The inputs, as text; those that are shown come first.
        wanted: What the data says to each.
    """

    prompts: list[str]
    wanted: list[str]

    @abstractmethod
    def of(self, model: PeftModel, count: int) -> list[str]:
        """What `model` says to the first `count` inputs."""

    def exact_match(self, said: Sequence[str]) -> float | None:
        """Share of `said` that is what was wanted, 0 to 1; None where nothing is to be matched."""
        return None


def answers_to(
    rows: Any, tokenizer: PreTrainedTokenizerBase, task_type: TaskType, settings: CompareConfig
) -> Answers | None:
    """The inputs among `rows` that are asked; None for a task that says nothing to read."""
    if task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        return _Texts(rows, tokenizer, task_type, settings)
    kind = _READERS.get(task_type)
    return None if kind is None else kind(rows, tokenizer, task_type, settings.samples)


def prompt_and_answer(
    row: Mapping[str, Any], task_type: TaskType
) -> tuple[list[int], list[int]] | None:
    """The ids that a model is asked with and those that it should say; None for plain text.

    Of a conversation that is its last answer.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    if task_type is TaskType.SEQ_2_SEQ_LM:
        return ids, [token for token in labels if token != IGNORED]
    learned = [at for at, label in enumerate(labels) if label != IGNORED]
    stop = learned[-1] + 1
    start = stop - len(list(takewhile(lambda label: label != IGNORED, reversed(labels[:stop]))))
    return (ids[:start], ids[start:stop]) if start else None


class _Texts(Answers):
    """Models that generate."""

    def __init__(
        self,
        rows: Any,
        tokenizer: PreTrainedTokenizerBase,
        task_type: TaskType,
        settings: CompareConfig,
    ) -> None:
        self.tokenizer, self.task_type, self.settings = tokenizer, task_type, settings
        asked = (prompt_and_answer(row, task_type) for row in rows)
        most = max(settings.answers, settings.samples, settings.speed_rows)
        pairs = list(islice((pair for pair in asked if pair is not None), most))
        self.matches = bool(pairs) and settings.answers > 0
        if not pairs:
            pairs = [_begun(row["input_ids"]) for row in islice(rows, most)]
        self.ids = [ids for ids, _ in pairs]
        self.prompts = [self._text(ids) for ids, _ in pairs]
        self.wanted = [self._text(ids) for _, ids in pairs]
        # One more than the longest answer: the token that ends it.
        longest = max(len(ids) for _, ids in pairs) + 1
        self.most = min(longest, settings.max_new_tokens)

    def of(self, model: PeftModel, count: int) -> list[str]:
        predictor = Predictor(model, self.tokenizer, self.task_type)
        answers = predictor.complete(self.ids[:count], Sampling(max_new_tokens=self.most))
        return [answer.text for answer in answers]

    def exact_match(self, said: Sequence[str]) -> float | None:
        if not self.matches or not said:
            return None
        pairs = zip(said, self.wanted, strict=False)
        return sum(a.strip() == b.strip() for a, b in pairs) / len(said)

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _begun(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """A piece of plain text, to be gone on with."""
    at = max(1, min(len(ids) // _SHARE, _MOST_SHOWN))
    return list(ids[:at]), list(ids[at : at + _MOST_SHOWN])


class _Read(Answers):
    """Models that read off their answer from one forward pass of a row."""

    def __init__(
        self, rows: Any, tokenizer: PreTrainedTokenizerBase, task_type: TaskType, count: int
    ) -> None:
        self.tokenizer, self.collate = tokenizer, Collator(tokenizer, task_type)
        self.rows: list[Any] = list(islice(rows, count))
        self.prompts = [
            str(tokenizer.decode(row["input_ids"], skip_special_tokens=True)) for row in self.rows
        ]
        self.wanted = ["" for _ in self.rows]  # labels have their names from the model

    def of(self, model: PeftModel, count: int) -> list[str]:
        device: Any = model.base_model.device
        self.wanted = [self._right(model, row) for row in self.rows]
        said = []
        for row in self.rows[:count]:
            inputs = {name: value.to(device) for name, value in self.collate([row]).items()}
            with torch.no_grad():
                said.append(self._said(model, row, inputs, model(**inputs)))
        return said

    @abstractmethod
    def _right(self, model: PeftModel, row: Mapping[str, Any]) -> str:
        """What the data says to `row`."""

    @abstractmethod
    def _said(
        self, model: PeftModel, row: Mapping[str, Any], inputs: dict[str, Tensor], out: Any
    ) -> str:
        """What the model's outputs for `row` say."""


class _Classes(_Read):
    """SEQ_CLS."""

    def _right(self, model: PeftModel, row: Mapping[str, Any]) -> str:
        return str(model.config.id2label[row["labels"]])

    def _said(
        self, model: PeftModel, row: Mapping[str, Any], inputs: dict[str, Tensor], out: Any
    ) -> str:
        return str(model.config.id2label[int(out.logits[0].argmax())])


class _Tags(_Read):
    """TOKEN_CLS: the tag of each word, at its first token."""

    def _right(self, model: PeftModel, row: Mapping[str, Any]) -> str:
        return self._names(model, row["labels"], row["labels"])

    def _said(
        self, model: PeftModel, row: Mapping[str, Any], inputs: dict[str, Tensor], out: Any
    ) -> str:
        return self._names(model, out.logits[0].argmax(-1).tolist(), row["labels"])

    def _names(self, model: PeftModel, tags: Sequence[int], labels: Sequence[int]) -> str:
        names = model.config.id2label
        pairs = zip(tags, labels, strict=False)
        return " ".join(str(names[tag]) for tag, label in pairs if label != IGNORED)


class _Spans(_Read):
    """QUESTION_ANS: a piece of the text, or none, of one window."""

    def _right(self, model: PeftModel, row: Mapping[str, Any]) -> str:
        first, last = row["start_positions"], row["end_positions"]
        inside = row["context_start"] <= first < row["context_stop"]
        return self._text(row, first, last) if inside else ""

    def _said(
        self, model: PeftModel, row: Mapping[str, Any], inputs: dict[str, Tensor], out: Any
    ) -> str:
        begin = row["context_start"]
        place = slice(begin, row["context_stop"])
        reading = read_window(out.start_logits[0], out.end_logits[0], place, row["nowhere"], 0)
        span = best_span([reading])
        return "" if span is None else self._text(row, begin + span.first, begin + span.last)

    def _text(self, row: Mapping[str, Any], first: int, last: int) -> str:
        ids = row["input_ids"][first : last + 1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


_READERS: dict[TaskType, type[_Read]] = {
    TaskType.SEQ_CLS: _Classes,
    TaskType.TOKEN_CLS: _Tags,
    TaskType.QUESTION_ANS: _Spans,
}
