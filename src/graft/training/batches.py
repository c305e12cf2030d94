"""Which rows make a step, and rows -> batches.

The order is a function of (seed, epoch) alone, so the step number is all that a resumed run needs
to find its place. What is in a row, and padding, are `graft.data`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graft.config import TaskType
from graft.data.template import IGNORED
from graft.errors import DataError
from graft.training.config import TrainConfig

__all__ = [
    "Batch",
    "Collate",
    "Order",
    "Rows",
    "collating",
    "joined",
    "make_batch",
    "row_lengths",
    "split",
    "total_steps",
]


class Rows(Protocol):
    """Tokenised rows, such as a `datasets.Dataset` or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


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

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`; from pinned memory nothing waits for it."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs)

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU reads by itself."""
        return replace(self, inputs={n: value.pin_memory() for n, value in self.inputs.items()})

    @property
    def width(self) -> int:
        """Columns of its inputs."""
        return self.inputs["input_ids"].shape[1]


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


@contextmanager
def collating() -> Iterator[Executor]:
    """The thread that makes batches ahead, for all adapters of a run; it ends with the block."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="graft-batches")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def joined(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The inputs of `batches` as those of one batch, padded on the right to the longest row."""
    out: dict[str, Tensor] = {}
    for name in batches[0].inputs:
        values = [batch.inputs[name] for batch in batches]
        if values[0].ndim > 1:
            width = max(value.shape[1] for value in values)
            pad = IGNORED if name == "labels" else 0
            values = [F.pad(value, (0, width - value.shape[1]), value=pad) for value in values]
        out[name] = torch.cat(values)
    return out


def row_lengths(rows: Rows) -> np.ndarray:
    """Tokens of each row's input."""
    if not isinstance(rows, datasets.Dataset):
        return np.array([len(rows[i]["input_ids"]) for i in range(len(rows))])
    table = rows.select_columns("input_ids").with_format("arrow")
    pieces: Any = table.iter(batch_size=10_000)  # all at once would be all of their tokens
    counts = [
        chunk.value_lengths().to_numpy() for piece in pieces for chunk in piece["input_ids"].chunks
    ]
    return np.concatenate(counts) if counts else np.zeros(0, int)


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
