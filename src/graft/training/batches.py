"""Which rows make a step, and rows -> batches.

The order is a function of (seed, epoch) alone, so the step number is all that a resumed run needs
to find its place. What is in a row, and padding, are `graft.data`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from graft.config import TaskType
from graft.data.template import IGNORED
from graft.errors import DataError
from graft.training.config import TrainConfig

__all__ = ["Batch", "Collate", "Order", "Rows", "make_batch", "split", "total_steps"]

Rows = Sequence[Mapping[str, Any]]
Collate = Callable[[list[Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        inputs: Arguments of the model, each [B, ...].
        rows: B.
        targets: Labels that count in the loss; the model's loss is the mean over these. A row of
            QUESTION_ANS is one.
        tokens: Tokens that are no padding.
    """

    inputs: dict[str, Tensor]
    rows: int
    targets: int
    tokens: int


def make_batch(rows: list[Any], collate: Collate, task_type: TaskType) -> Batch:
    """Collate `rows` and count what is in them.

    Raises:
        DataError: Nothing in them can be learned.
    """
    inputs = collate(rows)
    if task_type is TaskType.CAUSAL_LM:
        # Nothing stands before the first token but, in some methods, virtual tokens: without it
        # the loss of every method is over the same tokens.
        inputs["labels"][:, 0] = IGNORED
    if task_type is TaskType.QUESTION_ANS:
        targets = len(rows)
    else:
        targets = int((inputs["labels"] != IGNORED).sum())
    if not targets:
        raise DataError(f"A batch of {len(rows)} rows has no label to learn; leave such rows out.")
    tokens = int(inputs["attention_mask"].sum())
    if task_type is TaskType.SEQ_2_SEQ_LM:
        tokens += targets  # the decoder's
    return Batch(inputs, len(rows), targets, tokens)


def split(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """`indices` in pieces of `size`; the last may be smaller."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class Order:
    """The rows of each step: a new permutation every epoch, the last step may be smaller.

    Args:
        rows: Number of training rows.
        rows_per_step: Rows in one optimizer step.
        seed: Seed of the run.
    """

    def __init__(self, rows: int, rows_per_step: int, seed: int) -> None:
        self.rows = rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.steps_per_epoch = math.ceil(rows / rows_per_step)
        self._epoch = -1
        self._permutation: list[int] = []

    def step(self, index: int) -> list[int]:
        """The rows of step `index`, counted from 0 over all epochs."""
        epoch, place = divmod(index, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = (
                np.random.default_rng([self.seed, epoch]).permutation(self.rows).tolist()
            )
        start = place * self.rows_per_step
        return self._permutation[start : start + self.rows_per_step]


def total_steps(settings: TrainConfig, order: Order) -> int:
    """Optimizer steps in the whole run."""
    if settings.max_steps > 0:
        return settings.max_steps
    return math.ceil(settings.num_train_epochs * order.steps_per_epoch)
