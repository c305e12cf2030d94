"""What goes through the model in a step: rows as they are given, or as the data of a run has them.

The longest forward pass decides the peak, the mean of them the time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graft.config import TaskType
from graft.data.template import IGNORED
from graft.errors import ConfigError
from graft.planning.setting import Row
from graft.training.batches import Order, split, total_steps
from graft.training.config import TrainConfig

__all__ = ["DrawnRows", "GivenRows", "Pass", "RowSource", "Workload", "row_sizes", "smaller"]

Pass = tuple[Row, ...]

_USUAL_ROWS = 8
_USUAL_LENGTH = 512
_EPOCHS = 3  # whose batches are looked at: each is another draw of the same rows


@dataclass(frozen=True)
class Workload:
    """The forward passes of a run.

    Attributes:
        longest: The one that costs most.
        typical: One of average cost.
        passes: How many an optimizer step has.
        tokens: Tokens in an optimizer step, on average.
        steps_per_epoch: Optimizer steps in one pass over the rows; None where rows are given.
        steps: Optimizer steps of the run; None where rows are given.
        sizes: Tokens in each pass, ascending; empty where rows are given.
    """

    longest: Pass
    typical: Pass
    passes: int
    tokens: float
    steps_per_epoch: int | None = None
    steps: int | None = None
    sizes: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(row.tokens for row in self.longest)


class RowSource(ABC):
    """Where the rows of a step come from.

    Attributes:
        batch_size: Rows in a forward pass, as the settings say.
        accumulation: Forward passes in an optimizer step, as the settings say.
    """

    batch_size: int
    accumulation: int

    @abstractmethod
    def workload(self, parts: int = 1, length: int | None = None, padded: bool = False) -> Workload:
        """The forward passes.

        Args:
            parts: Into how many each batch is split; it divides `batch_size`.
            length: Most tokens of a row; None leaves them as they are.
            padded: Whether a batch costs its longest row for each of its rows.
        """


class GivenRows(RowSource):
    """Batches of equal rows.

    Args:
        batch_size: Rows in a forward pass; None: 8.
        length: Tokens of each; None: 512, or what the model can read where that is less.
        accumulation: Forward passes in an optimizer step.
        task_type: Says how many labels a row has.
        limit: How many tokens the model can read; None where it does not say.

    Raises:
        ConfigError: No rows, no tokens, or more of these than the model can read.
    """

    def __init__(
        self,
        batch_size: int | None,
        length: int | None,
        accumulation: int,
        task_type: TaskType,
        limit: int | None,
    ) -> None:
        self.batch_size = _USUAL_ROWS if batch_size is None else batch_size
        self.accumulation = accumulation
        self.length = min(_USUAL_LENGTH, limit or _USUAL_LENGTH) if length is None else length
        self.task_type = task_type
        for what, value in (("rows", self.batch_size), ("tokens in a row", self.length)):
            if value < 1:
                raise ConfigError(f"There is no batch with {value} {what}: give 1 or more.")
        if limit is not None and self.length > limit:
            raise ConfigError(
                f"Rows of {self.length:,} tokens are too long: the model has {limit:,} positions."
            )

    def workload(self, parts: int = 1, length: int | None = None, padded: bool = False) -> Workload:
        tokens = self.length if length is None else min(length, self.length)
        labels = tokens
        if self.task_type in (TaskType.SEQ_CLS, TaskType.QUESTION_ANS):
            labels = 1
        elif self.task_type is TaskType.CAUSAL_LM:
            labels = tokens - 1  # nothing stands before the first
        rows: Pass = (Row(tokens, labels),) * (self.batch_size // parts)
        both = self.task_type is TaskType.SEQ_2_SEQ_LM  # the decoder's tokens too
        read = tokens * (1 + both) * self.batch_size * self.accumulation
        return Workload(rows, rows, self.accumulation * parts, float(read))


class DrawnRows(RowSource):
    """The rows of a run with one adapter, in the batches that its seed draws.

    Args:
        sizes: `row_sizes` of its rows.
        settings: The run's.
        both: Whether the labels are read too, by a decoder.
    """

    def __init__(self, sizes: np.ndarray, settings: TrainConfig, both: bool = False) -> None:
        self.sizes, self.settings, self.both = sizes, settings, both
        self.batch_size = settings.per_device_train_batch_size
        self.accumulation = settings.gradient_accumulation_steps

    def workload(self, parts: int = 1, length: int | None = None, padded: bool = False) -> Workload:
        sizes = self.sizes if length is None else np.minimum(self.sizes, length)
        size = self.batch_size // parts
        order = Order(len(sizes), self.batch_size * self.accumulation, self.settings.seed)
        steps = total_steps(self.settings, order)
        seen = min(steps, _EPOCHS * order.steps_per_epoch)
        passes = [list(rows) for step in range(seen) for rows in split(order.step(step), size)]
        read = sizes.sum(1) if self.both else sizes[:, 0]
        tokens = np.array([int(read[rows].sum()) for rows in passes])
        cost = tokens
        if padded:
            cost = np.array([len(rows) * int(read[rows].max()) for rows in passes])
        return Workload(
            longest=_rows(sizes, passes[int(cost.argmax())]),
            typical=_rows(sizes, passes[int(np.abs(cost - cost.mean()).argmin())]),
            passes=round(len(passes) / seen),
            tokens=float(tokens.sum() / seen),
            steps_per_epoch=order.steps_per_epoch,
            steps=steps,
            sizes=tuple(sorted(tokens.tolist())),
        )


def _rows(sizes: np.ndarray, indices: Sequence[int]) -> Pass:
    return tuple(Row(int(sizes[i, 0]), int(sizes[i, 1])) for i in indices)


def row_sizes(rows: Any, task_type: TaskType) -> np.ndarray:
    """[rows, 2]: tokens and labels of each row of a data set that `prepare_data` made."""
    table = rows.with_format("arrow")[:]
    tokens = _lengths(table.column("input_ids"))
    if task_type in (TaskType.SEQ_CLS, TaskType.QUESTION_ANS):
        return np.stack([tokens, np.ones_like(tokens)], axis=1)
    labels = table.column("labels")
    learned = np.concatenate([chunk.flatten().to_numpy() for chunk in labels.chunks]) != IGNORED
    ends = np.cumsum(_lengths(labels))
    if task_type is TaskType.CAUSAL_LM:
        learned[ends - _lengths(labels)] = False  # nothing stands before the first
    before = np.concatenate([[0], np.cumsum(learned)])
    return np.stack([tokens, np.diff(before[ends], prepend=0)], axis=1)


def _lengths(column: Any) -> np.ndarray:
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks])


def smaller(batch_size: int) -> Iterator[int]:
    """Into how many parts a batch can be split, fewest first, so that all are of one size."""
    for parts in range(2, batch_size + 1):
        if batch_size % parts == 0:
            yield parts


def parts_of(settings: Mapping[str, TrainConfig]) -> list[int]:
    """Into how many parts the batches of all adapters can be split."""
    sizes = [own.per_device_train_batch_size for own in settings.values()]
    return [parts for parts in smaller(max(sizes)) if all(size % parts == 0 for size in sizes)]
