"""The whole path: a user's files -> tokenised rows, ready for the collator.

Here: which files and format, what is set aside for evaluation, what was cut or lost. What is
learned from a row is up to its task (`tasks`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.formats import find_format, read_each, rename_columns
from graft.data.sources import Rows, read_files
from graft.data.tasks import Example, Task, make_task
from graft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PreparedData", "prepare_data"]

_BATCH = 1000  # rows to a call of the tokenizer

Groups = list[list[Example | None]]


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows, held in memory.

    Attributes:
        train: Columns `input_ids` and `labels`. For CAUSAL_LM labels are as long as the input and
            -100 where nothing is learned; for SEQ_2_SEQ_LM they are the target's ids; for SEQ_CLS
            one index into `label_names` (and there may be `token_type_ids`).
        eval: The same, or None where nothing is set aside.
        label_names: SEQ_CLS: the labels, sorted, whole numbers by value.
        format: The format that was found or given.
        chat_template: The Jinja source that rendered the turns, to be saved with the adapter; None
            where texts are taken as they stand.
        rows_dropped: Rows in which nothing was left to learn; they are in neither set.
        rows_truncated: Rows that were cut to the length.
    """

    train: datasets.Dataset
    eval: datasets.Dataset | None
    label_names: list[str] | None
    format: str
    chat_template: str | None
    rows_dropped: int
    rows_truncated: int


def prepare_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, task_type: TaskType, seed: int
) -> PreparedData:
    """Read, tokenise and split the files that `config` names.

    Rows are cut to `config.max_length`, or to the tokenizer's `model_max_length` where that is
    less.

    Args:
        config: The `data:` section of the run file.
        tokenizer: The base model's tokenizer.
        task_type: CAUSAL_LM, SEQ_2_SEQ_LM or SEQ_CLS.
        seed: Decides which rows `config.eval_fraction` sets aside. What comes of one conversation
            stays together; blocks of one text may be parted.

    Raises:
        DataError: Files, columns or rows that cannot be used.
    """
    paths = [config.train] if isinstance(config.train, str) else config.train
    rows = _load(paths, config)
    format_name = find_format(rows, config.format, task_type)
    task = make_task(tokenizer, config, format_name, task_type)
    groups = _encode(task, rows, config)
    heldout: Groups = []
    if config.eval is not None:
        eval_rows = _load([config.eval], config)
        find_format(eval_rows, format_name, task_type)
        heldout = _encode(task, eval_rows, config)
    label_names = None
    if task_type is TaskType.SEQ_CLS:
        label_names = _label_names(groups, rows.name)
        groups = _number_labels(groups, label_names, rows.name)
        heldout = _number_labels(heldout, label_names, str(config.eval))
    if config.eval_fraction:
        groups, heldout = _split(groups, config.eval_fraction, seed)
    examples = [example for group in groups + heldout for example in group]
    return PreparedData(
        train=_dataset(groups, "training", task.limit),
        eval=_dataset(heldout, "evaluation", task.limit) if heldout else None,
        label_names=label_names,
        format=format_name,
        chat_template=task.chat_template,
        rows_dropped=sum(example is None for example in examples),
        rows_truncated=sum(example is not None and example.truncated for example in examples),
    )


def _load(paths: list[str], config: DataConfig) -> Rows:
    return rename_columns(read_files(paths).head(config.max_rows), config.columns)


def _encode(task: Task, rows: Rows, config: DataConfig) -> Groups:
    items = read_each(rows, task.read)
    groups: Groups = []
    for at in range(0, len(items), _BATCH):
        groups += task.encode(items[at : at + _BATCH])
    return groups[: config.max_rows]  # again: one text may have become many blocks


def _split(groups: Groups, fraction: float, seed: int) -> tuple[Groups, Groups]:
    """`groups` without a share of them, and that share; both in the order they had."""
    if len(groups) < 2:
        raise DataError("eval_fraction: there is one row only, and it cannot be set aside.")
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    chosen = set(random.Random(seed).sample(range(len(groups)), count))
    kept = [group for index, group in enumerate(groups) if index not in chosen]
    return kept, [groups[index] for index in sorted(chosen)]


def _label_names(groups: Groups, name: str) -> list[str]:
    labels = {example.columns["labels"] for group in groups for example in group if example}
    if len(labels) < 2:
        raise DataError(f"{name} has one label only ({labels.pop()!r}): expected two or more.")
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


def _number_labels(groups: Groups, label_names: list[str], name: str) -> Groups:
    index = {label: number for number, label in enumerate(label_names)}

    def numbered(example: Example | None) -> Example | None:
        assert example is not None
        label = example.columns["labels"]
        if label not in index:
            hint = did_you_mean(label, label_names)
            raise DataError(f"{name} has the label {label!r}, which no training row has.{hint}")
        return example._replace(columns={**example.columns, "labels": index[label]})

    return [[numbered(example) for example in group] for group in groups]


def _dataset(groups: Groups, use: str, limit: int) -> datasets.Dataset:
    rows = [example.columns for group in groups for example in group if example]
    if not rows:
        raise DataError(
            f"Nothing is left to learn in the {use} rows after cutting them to {limit} tokens: "
            "raise max_length, or shorten the prompts."
        )
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})
