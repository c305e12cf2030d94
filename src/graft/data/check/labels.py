"""Findings in the labels of classification: what cannot be learned, what hardly can."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graft.config import TaskType
from graft.data.check.examples import Examples
from graft.data.check.report import Finding

__all__ = ["count_labels", "label_findings"]

_LARGEST = 0.9  # share of rows with one label from which guessing it looks like learning
_SMALLEST = 0.01  # share below which a label is hardly learned


def count_labels(examples: Examples, chosen: np.ndarray) -> dict[str, int]:
    """How often each label is in the marked examples, most often first."""
    if examples.labels is None:
        return {}
    if examples.task_type is TaskType.TOKEN_CLS:
        chosen = np.repeat(chosen, np.diff(examples.bounds))
    counted = examples.labels.filter(chosen).drop_null().value_counts().to_pylist()
    pairs = [(str(entry["values"]), int(entry["counts"])) for entry in counted]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def label_findings(examples: Examples) -> Iterator[Finding]:
    """What the labels show."""
    train = count_labels(examples, ~examples.held)
    if not train:
        return
    strangers = {
        label: count
        for label, count in count_labels(examples, examples.held).items()
        if label not in train
    }
    if strangers:
        yield Finding(
            "labels-only-in-eval",
            "spoils",
            len(strangers),
            len(strangers) / (len(strangers) + len(train)),
            f"no training row has it: {_listed(strangers)}",
            "add training rows with it, or correct the label",
            examples.where(examples.held & _having(examples, set(strangers))),
            unit="labels",
        )
    if len(train) == 1:
        yield Finding(
            "one-label",
            "spoils",
            1,
            1.0,
            f"the only one there is: {_listed(train)}",
            "add rows with other labels",
            unit="labels",
        )
    if examples.task_type is not TaskType.SEQ_CLS or len(train) == 1:
        return  # of tags, most are for words outside of anything
    rows = sum(train.values())
    label, largest = next(iter(train.items()))
    if largest >= _LARGEST * rows:
        yield Finding(
            "one-label-rules",
            "remark",
            largest,
            largest / rows,
            f"the label is {label}, so guessing it always looks like learning",
            "judge by the F1 score, or add rows with other labels",
        )
    rare = {label: count for label, count in train.items() if count < _SMALLEST * rows}
    if rare:
        yield Finding(
            "rare-labels",
            "remark",
            len(rare),
            len(rare) / len(train),
            f"hardly to be learned from so few rows: {_listed(rare)}",
            "add rows with it, or join it to another label",
            examples.where(~examples.held & _having(examples, set(rare))),
            unit="labels",
        )


def _having(examples: Examples, labels: set[str]) -> np.ndarray:
    """Whether each example has one of `labels`."""
    assert examples.labels is not None
    hits = np.array([label in labels for label in examples.labels.to_pylist()], bool)
    return examples.count(hits) > 0 if examples.task_type is TaskType.TOKEN_CLS else hits


def _listed(labels: dict[str, int]) -> str:
    first = [f"{label} ({count:,})" for label, count in list(labels.items())[:5]]
    return ", ".join(first) + (", ..." if len(labels) > 5 else "")
