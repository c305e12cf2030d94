"""A model and a data set looked at, before there is a run: what for, how long, how many.

Reads the model's config, no weights, and the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graft.config import TaskType, as_enum
from graft.data.config import HUBS, DataConfig, SourceConfig
from graft.data.formats import find_format, rename_columns, suggest_columns
from graft.data.rows import Rows
from graft.data.sources import read_source, resolve_source
from graft.data.tasks import Task, make_task
from graft.errors import DataError, GraftError
from graft.hub import load_config, load_tokenizer, positions_of, task_of
from graft.inspection import Inspection, inspect

__all__ = ["Survey", "survey"]

_SAMPLE = 2000  # rows whose tokens are counted
_NO_LIMIT = 10**6
_HEADS = (TaskType.QUESTION_ANS, TaskType.TOKEN_CLS, TaskType.SEQ_CLS)


@dataclass(frozen=True)
class Survey:
    """What there is to know of a model and a data set.

    Attributes:
        model: As the user calls it.
        data: As the user calls it.
        inspection: The model, and what each method would do to it.
        own: What the model's config says that it is for.
        task_type: What it is for here.
        format: The format of the rows.
        columns: Our names -> the file's, guessed; empty where none had to be.
        has_validation: Whether the data set has a split of that name.
        rows: How many there are.
        lengths: Tokens of the rows, or of a sample of them, as far as the model can read them.
        beyond: Which of these it cannot read to their end.
        positions: Most tokens that the model can read.
    """

    model: str
    data: str
    inspection: Inspection
    own: TaskType
    task_type: TaskType
    format: str
    columns: dict[str, str]
    has_validation: bool
    rows: int
    lengths: np.ndarray
    beyond: np.ndarray
    positions: int


def survey(model: str, data: str, task_type: str | None) -> Survey:
    """Look at `model` and `data`, for `task_type` or for what the columns say.

    Raises:
        GraftError: A model or data that cannot be used.
    """
    base = load_config(model)
    source = SourceConfig(path=data)
    resolved = resolve_source(source)
    rows = read_source(resolved)
    asked = None if task_type is None else as_enum(TaskType, task_type, "task_type")
    own = task_of(base)
    task, columns = _task(own, asked, rows)
    rows = rename_columns(rows, columns) if columns else rows
    format_name = find_format(rows, resolved.format, task)
    tokenizer = load_tokenizer(model)
    positions = min(positions_of(base, tokenizer), _NO_LIMIT)
    config = DataConfig(train=data, max_length=positions)
    learned = make_task(tokenizer, config, format_name, task)
    lengths, beyond = _lengths(rows, learned)
    return Survey(
        model=model,
        data=data,
        own=own,
        inspection=inspect(model, task_type=task),
        task_type=task,
        format=format_name,
        columns=columns,
        has_validation=_has_validation(source),
        rows=len(rows.items),
        lengths=lengths,
        beyond=beyond,
        positions=positions,
    )


def _task(own: TaskType, asked: TaskType | None, rows: Rows) -> tuple[TaskType, dict[str, str]]:
    """What the rows can teach this model, and how to name their columns where that is a guess."""
    if asked is not None:
        candidates = [asked]
    else:
        candidates = [own, *_HEADS] if own is not TaskType.FEATURE_EXTRACTION else list(_HEADS)
    fitting = [task for task in candidates if _fits(rows, task)]
    if fitting:
        # Of rows with a text and a label a language model would learn the text alone.
        labelled = TaskType.SEQ_CLS in fitting and find_format(rows, "auto", fitting[0]) == "text"
        return (TaskType.SEQ_CLS if labelled else fitting[0]), {}
    guesses = {task: suggest_columns(rows, task) for task in candidates}
    best = max(candidates, key=lambda task: len(guesses[task] or {}))
    columns = guesses[best]
    if columns is None:
        find_format(rows, "auto", candidates[0])  # says what is missing
        raise AssertionError("unreachable")
    return best, {ours: theirs for ours, theirs in columns.items() if ours != theirs}


def _fits(rows: Rows, task_type: TaskType) -> bool:
    try:
        find_format(rows, "auto", task_type)
    except DataError:
        return False
    return True


def _lengths(rows: Rows, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Tokens in each row of an even sample, and whether it was cut."""
    picked = range(0, len(rows.items), max(1, math.ceil(len(rows.items) / _SAMPLE)))
    items = []
    for index in picked:
        try:
            items.append(task.read(rows.items[index]))
        except DataError as error:
            raise DataError(f"{rows.where(index)}: {error}") from None
    lengths, beyond = [], []
    for group in task.encode(items):
        kept = [example for example in group if example is not None]
        # Of a row in which nothing is left to learn, the prompt alone is too long.
        lost = not kept and not task.parts_rows
        lengths.append(task.limit if lost else sum(len(e.columns["input_ids"]) for e in kept))
        beyond.append(lost or any(example.truncated for example in kept))
    return np.array(lengths), np.array(beyond)


def _has_validation(source: SourceConfig) -> bool:
    if not (Path(source.path).is_dir() or source.path.startswith(HUBS)):
        return False
    try:
        resolve_source(source.model_copy(update={"split": "validation"}))
    except GraftError:
        return False
    return True
