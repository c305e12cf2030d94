"""What the verbs of `graft data` are given: a run file, or data and the model it is meant for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graft.config import TaskType
    from graft.training.config import RunConfig

__all__ = ["Model", "Settings", "Source", "Task", "as_trained", "find_run"]

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN.yaml | DATA",
        help="A run file; or a data file, a folder or a hub's hf:ORG/NAME, with --model.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE | --KEY VALUE]...",
        help="Settings of the data: max_length=512, format=alpaca, split=validation, ...",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the base model; its tokenizer alone is enough."),
]
Task = Annotated[
    str | None,
    typer.Option(help="CAUSAL_LM, SEQ_CLS, ...; by default as the model or the data says."),
]


def find_run(
    source: str, settings: list[str] | None, model: str | None, task_type: str | None
) -> RunConfig:
    """The run that is meant: that of the run file, or one that only looks at the data `source`.

    Raises:
        GraftError: No such file, no model, a setting that cannot work.
    """
    from graft.training.runfile import load_run_config, parse_run_config, split_overrides

    overrides = split_overrides(settings or [])
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        overrides += [f"base_model={model}"] if model else []
        overrides += [f"task_type={task_type}"] if task_type else []
        return load_run_config(source, overrides)
    if model is None:
        raise ConfigError(
            f"{source} is data: name the base model that it is for, with --model FOLDER or "
            "--model ORG/NAME; its tokenizer makes the tokens."
        )
    raw = {
        "base_model": model,
        "task_type": task_type or "CAUSAL_LM",
        "adapters": {"adapter": {"method": "lora"}},
        "data": {"train": {"path": source}},
        "train": {"output_dir": "."},
    }
    run = parse_run_config(raw, [_placed(override) for override in overrides])
    if task_type is None:
        run = run.model_copy(update={"task_type": _likely_task(run)})
    return run


def as_trained(run: RunConfig) -> tuple[RunConfig, PreTrainedTokenizerBase, int | None]:
    """The run with rows as long as training takes them, the tokenizer, and how long they may be.

    None where the base model is a tokenizer alone, which has no positions.

    Raises:
        GraftError: No tokenizer, or virtual tokens that leave no room for text.
    """
    from graft.errors import CheckpointError
    from graft.hub import load_tokenizer
    from graft.training.positions import room_for_text, within

    tokenizer = load_tokenizer(run.base_model, run.revision)
    try:
        room = room_for_text(run, tokenizer)
    except CheckpointError:
        return run, tokenizer, None
    return within(run, room), tokenizer, room


def _placed(override: str) -> str:
    """`override` with the path that its setting has in a run file, where it is one of the data."""
    from graft.data.config import DataConfig

    name = override.partition("=")[0].split(".")[0]
    if name in ("subset", "split"):
        return f"data.train.{override}"
    return f"data.{override}" if name in DataConfig.model_fields else override


def _likely_task(run: RunConfig) -> TaskType:
    """What the model's head is for; where it has none, what the columns of the data are for."""
    from graft.config import TaskType
    from graft.data.formats import find_format
    from graft.data.sources import read_source, resolve_source
    from graft.errors import GraftError
    from graft.hub import load_config, task_of

    try:
        task = task_of(load_config(run.base_model, run.revision))
    except GraftError:
        task = TaskType.FEATURE_EXTRACTION  # a tokenizer alone
    if task is not TaskType.FEATURE_EXTRACTION:
        return task
    first = run.data.train_sources[0].model_copy(update={"max_rows": 100})
    source = resolve_source(first, run.data.dataset_dir)
    rows = read_source(source)
    for task in (TaskType.QUESTION_ANS, TaskType.TOKEN_CLS, TaskType.SEQ_CLS):
        try:
            find_format(rows, source.format, task)
        except DataError:
            continue
        return task
    return TaskType.CAUSAL_LM
