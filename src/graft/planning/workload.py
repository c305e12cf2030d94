"""What goes through the model in a step: rows as they are given, or as the data of a run has them.

The longest forward pass decides the peak, the mean of them the time.
"""

from __future__ import annotations

import math
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
from graft.training.passes import fill_passes, token_budget

__all__ = [
    "DrawnRows",
    "GivenRows",
    "Lesson",
    "Pass",
    "RowSource",
    "Workload",
    "row_sizes",
    "smaller",
]

Pass = tuple[Row, ...]

_USUAL_ROWS = 8
_USUAL_LENGTH = 512
_MOST = 2**22  # tokens of a pass: its ids are real ones
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

    @abstractmethod
    def split(self, parts: int) -> tuple[str, tuple[str, ...]]:
        """Batches in `parts`, in words and as settings of a run file; steps stay as they are."""


class GivenRows(RowSource):
    """Batches of equal rows.

    Args:
        batch_size: Rows in a forward pass; None: 8.
        length: Tokens of each; None: 512, or what the model can read where that is less.
        accumulation: Forward passes in an optimizer step.
        task_type: Says how many labels a row has.
        limit: How many tokens the model can read; None where it does not say.

    Raises:
        ConfigError: No rows, no tokens to learn, or more than the model, or any device, can read.
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
        if self.length == 1 and task_type is TaskType.CAUSAL_LM:
            raise ConfigError("A row of 1 token has no next one to learn: give 2 or more.")
        if limit is not None and limit < 1:
            raise ConfigError(
                f"The virtual tokens leave {limit:,} positions of the model for text: give fewer."
            )
        if self.batch_size * self.length > _MOST:
            raise ConfigError(
                f"A pass of {self.batch_size:,} rows of {self.length:,} tokens is beyond any "
                f"device: give {_MOST:,} tokens or fewer."
            )
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

    def split(self, parts: int) -> tuple[str, tuple[str, ...]]:
        return _split("train", self.batch_size, self.accumulation, parts)


@dataclass(frozen=True)
class Lesson:
    """What one adapter of a run learns.

    Attributes:
        sizes: `row_sizes` of its rows.
        settings: Of the run that would train it alone.
        own: Names of the settings that the run file gives for this adapter.
    """

    sizes: np.ndarray
    settings: TrainConfig
    own: frozenset[str] = frozenset()


class DrawnRows(RowSource):
    """The rows of a run, in the batches that its seed draws.

    Args:
        lessons: What each adapter learns, by its name.
        device: Kind of the device, which several adapters are to keep busy together.
        both: Whether the labels are read too, by a decoder.
    """

    def __init__(self, lessons: Mapping[str, Lesson], device: str, both: bool = False) -> None:
        self.lessons, self.device, self.both = lessons, device, both
        settings = [lesson.settings for lesson in lessons.values()]
        self.batch_size = math.gcd(*(own.per_device_train_batch_size for own in settings))
        self.accumulation = max(own.gradient_accumulation_steps for own in settings)

    def workload(self, parts: int = 1, length: int | None = None, padded: bool = False) -> Workload:
        courses = [_Course(name, own, parts, length, self.both)
                   for name, own in self.lessons.items()]  # fmt: skip
        rounds = max(course.seen for course in courses)
        passes = [each for step in range(rounds) for each in self._passes(courses, step, padded)]
        tokens = [sum(piece.tokens for piece in each) for each in passes]
        cost = np.array([_cost(each, padded) for each in passes])
        epochs = {course.order.steps_per_epoch for course in courses}
        return Workload(
            longest=self._rows(passes[int(cost.argmax())]),
            typical=self._rows(passes[int(np.abs(cost - cost.mean()).argmin())]),
            passes=round(len(passes) / rounds),
            tokens=sum(tokens) / rounds,
            steps_per_epoch=epochs.pop() if len(epochs) == 1 else None,
            steps=max(course.steps for course in courses),
            sizes=tuple(sorted(tokens)),
        )

    def split(self, parts: int) -> tuple[str, tuple[str, ...]]:
        told: dict[str, list[str]] = {}
        settings: dict[str, None] = {}
        for name, lesson in self.lessons.items():
            own = lesson.own & {"per_device_train_batch_size", "gradient_accumulation_steps"}
            section = f"adapters.{name}.train" if own else "train"
            size = lesson.settings.per_device_train_batch_size
            passes = lesson.settings.gradient_accumulation_steps
            words, each = _split(section, size, passes, parts)
            told.setdefault(words, []).append(name)
            settings |= dict.fromkeys(each)
        if len(told) == 1:
            return next(iter(told)), tuple(settings)
        lines = [f"{', '.join(names)}: {words}" for words, names in told.items()]
        return "; ".join(lines), tuple(settings)

    def _passes(self, courses: Sequence[_Course], step: int, padded: bool) -> list[list[_Piece]]:
        """The forward passes of a round."""
        due = {course.name: course.pieces(step) for course in courses if step < course.seen}
        if len(courses) == 1:
            return [[piece] for pieces in due.values() for piece in pieces]
        largest = max(_cost([piece], padded) for pieces in due.values() for piece in pieces)
        budget = token_budget(courses[0].lesson.settings.tokens_per_pass, largest, self.device)
        return fill_passes(due, lambda pieces: _cost(pieces, padded), budget)

    def _rows(self, pieces: Sequence[_Piece]) -> Pass:
        several = len(self.lessons) > 1
        return tuple(
            Row(int(tokens), int(labels), piece.adapter if several else None)
            for piece in pieces
            for tokens, labels in piece.sizes
        )


@dataclass(frozen=True)
class _Piece:
    """A batch of one adapter.

    Attributes:
        adapter: Its name.
        sizes: [rows, 2], as `row_sizes` has them.
        tokens: That it reads.
        widest: Tokens of its longest row.
    """

    adapter: str
    sizes: np.ndarray
    tokens: int
    widest: int


class _Course:
    """The batches of one adapter, step by step."""

    def __init__(
        self, name: str, lesson: Lesson, parts: int, length: int | None, both: bool
    ) -> None:
        self.name, self.lesson = name, lesson
        settings = lesson.settings
        self.sizes = lesson.sizes if length is None else np.minimum(lesson.sizes, length)
        self.read = self.sizes.sum(1) if both else self.sizes[:, 0]
        self.size = settings.per_device_train_batch_size // parts
        per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        self.order = Order(len(self.sizes), per_step, settings.seed)
        self.steps = total_steps(settings, self.order)
        self.seen = min(self.steps, _EPOCHS * self.order.steps_per_epoch)

    def pieces(self, step: int) -> list[_Piece]:
        out = []
        for rows in split(self.order.step(step), self.size):
            read = self.read[list(rows)]
            sizes = self.sizes[list(rows)]
            out.append(_Piece(self.name, sizes, int(read.sum()), int(read.max())))
        return out


def _cost(pieces: Sequence[_Piece], padded: bool) -> int:
    """Tokens that a pass computes."""
    if padded:
        return max(p.widest for p in pieces) * sum(len(p.sizes) for p in pieces)
    return sum(p.tokens for p in pieces)


def _split(section: str, size: int, passes: int, parts: int) -> tuple[str, tuple[str, ...]]:
    size, passes = size // parts, passes * parts
    words = f"{size} {'row' if size == 1 else 'rows'} a pass, {passes} passes a step"
    return words, (
        f"{section}.per_device_train_batch_size={size}",
        f"{section}.gradient_accumulation_steps={passes}",
    )


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
