"""How good the model is on rows it does not learn from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from graft.config import TaskType
from graft.data.spans import Reading, Span, best_span, read_window
from graft.data.template import IGNORED
from graft.training.batches import Collate, Rows, make_batch, split
from graft.training.forward import Forward, Part
from graft.training.metrics import are_bio, entity_f1, span_scores

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    rows: Rows,
    collate: Collate,
    task_type: TaskType,
    batch_size: int,
    device: torch.device,
    forward: Forward | None = None,
) -> dict[str, float]:
    """The mean loss over all targets of `rows`, and how often the model is right.

    Args:
        model: With the adapters that act.
        rows: Rows as `prepare_data` makes them.
        collate: Rows -> batch.
        task_type: What the rows are.
        batch_size: Rows in a forward pass.
        device: Where the model is.
        forward: How batches meet the model; None: padded.

    Returns:
        `loss`; for a language model `perplexity`; for a classifier `accuracy`; for tags of words
        `accuracy` over the words and, where the tags are BIO, `f1` over entities; for answers in a
        text `exact_match` and `f1` of their tokens, as means over the questions.
    """
    was_training = model.training
    model.eval()
    loss, targets = 0.0, 0
    judge = _JUDGES[task_type](model) if task_type in _JUDGES else None
    with torch.no_grad():
        for indices in split(range(len(rows)), batch_size):
            some = [rows[i] for i in indices]
            batch = make_batch(some, collate, task_type)
            targets += batch.targets
            if forward is not None and judge is None:
                loss += forward.loss([Part(batch.to(forward.takes_on), 1.0)])[0].item()
                continue
            batch = batch.to(device)
            out = model(**batch.inputs) if forward is None else forward.outputs(batch.inputs)
            loss += out.loss.item() * batch.targets
            if judge is not None:
                judge.see(some, batch.inputs, out)
    model.train(was_training)
    metrics = {"loss": loss / targets}
    if judge is not None:
        metrics |= judge.metrics()
    if task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))  # above, exp overflows
    return metrics


class _Judge(ABC):
    """Compares what the model says with what is right."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def see(self, rows: Sequence[Mapping[str, Any]], inputs: dict[str, Tensor], out: Any) -> None:
        """Take in a batch: its rows, its tensors, and the model's outputs."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The scores of all batches together."""


class _Classes(_Judge):
    """SEQ_CLS."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.right: list[bool] = []

    def see(self, rows: Sequence[Mapping[str, Any]], inputs: dict[str, Tensor], out: Any) -> None:
        self.right += (out.logits.argmax(-1) == inputs["labels"]).tolist()

    def metrics(self) -> dict[str, float]:
        return {"accuracy": fmean(self.right)}


class _Tags(_Judge):
    """TOKEN_CLS: a tag for each word, at its first token."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        names = model.config.id2label
        self.names = [names[number] for number in range(len(names))]
        self.said: list[list[str]] = []
        self.right: list[list[str]] = []

    def see(self, rows: Sequence[Mapping[str, Any]], inputs: dict[str, Tensor], out: Any) -> None:
        labels = inputs["labels"]
        for said, right in zip(out.logits.argmax(-1), labels, strict=True):  # [T] each
            words = right != IGNORED
            self.said.append([self.names[number] for number in said[words].tolist()])
            self.right.append([self.names[number] for number in right[words].tolist()])

    def metrics(self) -> dict[str, float]:
        said, right = (chain.from_iterable(tags) for tags in (self.said, self.right))
        scores = {"accuracy": fmean(a == b for a, b in zip(said, right, strict=True))}
        if are_bio(self.names):
            scores["f1"] = entity_f1(self.said, self.right)
        return scores


class _Answers(_Judge):
    """QUESTION_ANS: a span for each question, out of all windows of its text."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.windows: list[list[Reading]] = []
        self.right: list[Span | None] = []

    def see(self, rows: Sequence[Mapping[str, Any]], inputs: dict[str, Tensor], out: Any) -> None:
        for row, starts, ends in zip(rows, out.start_logits, out.end_logits, strict=True):
            first, stop, at = (row[f"context_{name}"] for name in ("start", "stop", "at"))
            if at == 0:  # the first window of a text
                self.windows.append([])
                self.right.append(None)
            length = len(row["input_ids"])
            begins, ends_at = row["start_positions"], row["end_positions"]
            reading = read_window(
                starts[:length], ends[:length], slice(first, stop), row["nowhere"], at
            )
            self.windows[-1].append(reading)
            if first <= begins < stop:
                self.right[-1] = Span(begins - first + at, ends_at - first + at)

    def metrics(self) -> dict[str, float]:
        pairs = zip(map(best_span, self.windows), self.right, strict=True)
        exact, f1 = zip(*(span_scores(said, right) for said, right in pairs), strict=True)
        return {"exact_match": fmean(exact), "f1": fmean(f1)}


_JUDGES: dict[TaskType, type[_Judge]] = {
    TaskType.SEQ_CLS: _Classes,
    TaskType.TOKEN_CLS: _Tags,
    TaskType.QUESTION_ANS: _Answers,
}
