"""What is asked of a plan: a run file, or a model and methods -> learners, rows, precisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import PreTrainedConfig

from graft.config import PeftType, TaskType, as_enum
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.errors import CheckpointError, ConfigError, did_you_mean
from graft.hub import load_config, load_tokenizer, resolve, task_of
from graft.inspection import unsaid_sizes
from graft.inspection.adapters import usual_settings
from graft.methods import METHODS, make_config, method_names
from graft.planning.case import FULL, Learner
from graft.planning.device import Device
from graft.planning.formulas import BASES, Base, find_base
from graft.planning.workload import DrawnRows, GivenRows, Lesson, RowSource, row_sizes
from graft.training.adapters import setting_value
from graft.training.config import RunConfig, TrainConfig
from graft.training.faults import value_faults
from graft.training.positions import room_for_text, within
from graft.training.precision import Hardware, decide, this_hardware
from graft.training.reading import parse_yaml

__all__ = ["Question", "question_of_model", "question_of_run"]

Tell = Callable[[str], None]

_NAME = "adapter"  # of one that no run file names


@dataclass(frozen=True)
class Question:
    """Steps to plan.

    Attributes:
        source: The run file or model, as the user calls it.
        config: Of the base model.
        task_type: Decides the head.
        device: Where it is to run.
        rows: What goes through the model.
        learners: What is planned side by side.
        others: Methods that are not, and could be taken in place of these.
        base: How the base model is held.
        bases: How else it could be, this one included.
        gradient_checkpointing: Whether activations are computed again.
        num_labels: Classes of a new head; None: as the config says.
    """

    source: str
    config: PreTrainedConfig
    task_type: TaskType
    device: Device
    rows: RowSource
    learners: tuple[Learner, ...]
    others: tuple[Learner, ...]
    base: Base
    bases: tuple[Base, ...]
    gradient_checkpointing: bool
    num_labels: int | None = None


def question_of_run(
    run: RunConfig,
    source: str,
    device: Device,
    methods: Sequence[str] = (),
    precision: str | None = None,
    length: int | None = None,
    tell: Tell | None = None,
) -> Question:
    """What a run costs.

    Args:
        run: The run.
        source: How it is called.
        device: Where it is to run.
        methods: In place of the run's own.
        precision: In place of the run's own.
        length: Tokens in each row; None: as the data has them.
        tell: Hears, in a line, what takes long.

    Raises:
        ConfigError: Methods or a length in place of those of several adapters.
    """
    if len(run.adapters) > 1 and (methods or length is not None):
        given = "a method" if methods else "a length"
        raise ConfigError(
            f"{source} trains {len(run.adapters)} adapters, each on its rows, so {given} cannot "
            "take their place: leave it out, or plan a run of one adapter."
        )
    config = _sized_config(run.base_model, run.revision)
    own = {name: each.peft_config(run.task_type) for name, each in run.adapters.items()}
    learner = Learner(" + ".join(each.peft_type.lower() for each in own.values()), own)
    learners = _learners(methods, run.task_type, {}) if methods else (learner,)
    base, bases = _bases(precision, run.train.bf16, config, device, len(learners))
    labels: int | None = None
    if length is None:
        rows, labels = _drawn(run, device.kind, tell)
    else:
        rows = GivenRows(
            run.train.per_device_train_batch_size,
            length,
            run.train.gradient_accumulation_steps,
            run.task_type,
            _positions(config, learners),
        )
    return Question(
        source=source,
        config=config,
        task_type=run.task_type,
        device=device,
        rows=rows,
        learners=learners,
        others=() if len(own) > 1 else _others(learners, run.task_type),
        base=base,
        bases=bases,
        gradient_checkpointing=run.train.gradient_checkpointing,
        num_labels=labels,
    )


def question_of_model(
    source: str,
    overrides: Sequence[str],
    device: Device,
    methods: Sequence[str] = (),
    precision: str | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    task_type: str | None = None,
) -> Question:
    """What methods on a model cost.

    Args:
        source: Folder or hub id of the base model.
        overrides: `key=value`, settings of the methods, or of a run's `train`.
        device: Where it is to run.
        methods: Of the six, and `full`; none: all of them.
        precision: How the base model is held; None: as the hardware says.
        batch_size: Rows in a forward pass.
        length: Tokens in each row.
        task_type: Decides the head; None: as the config says.
    """
    config = _sized_config(source, None)
    task = task_of(config) if task_type is None else as_enum(TaskType, task_type, "task_type")
    if task is TaskType.FEATURE_EXTRACTION:
        raise ConfigError(
            f"{source} has no head, so there is no loss to train: say what it is for by "
            "--task-type SEQ_CLS, TOKEN_CLS or QUESTION_ANS."
        )
    named = methods or (*method_names(), FULL)
    own, train = _settings(overrides, named)
    learners = _learners(named, task, own)
    base, bases = _bases(precision, train.bf16, config, device, len(learners))
    rows = GivenRows(
        batch_size if batch_size is not None else train.per_device_train_batch_size,
        length,
        train.gradient_accumulation_steps,
        task,
        _positions(config, learners),
    )
    return Question(
        source=source,
        config=config,
        task_type=task,
        device=device,
        rows=rows,
        learners=learners,
        others=_others(learners, task),
        base=base,
        bases=bases,
        gradient_checkpointing=train.gradient_checkpointing,
    )


def _sized_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The config, which must say how large the model is: a default would be another model's."""
    folder = Path(resolve(source, revision, part="config"))
    config = load_config(str(folder))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unsaid = unsaid_sizes(config, raw)
    if unsaid:
        raise CheckpointError(
            f"{folder / 'config.json'} does not say {' and '.join(unsaid)}, without which the "
            "model's size is not known."
        )
    return config


def _positions(config: PreTrainedConfig, learners: Sequence[Learner]) -> int | None:
    """How many tokens of text the model can read beside the virtual tokens of any learner."""
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or -1
    virtual = [
        getattr(each, "num_virtual_tokens", None) or 0
        for learner in learners
        for each in learner.adapters.values()
    ]
    return own - max(virtual, default=0) if own > 0 else None


def _bases(
    precision: str | None,
    bf16: bool | None,
    config: PreTrainedConfig,
    device: Device,
    learners: int,
) -> tuple[Base, tuple[Base, ...]]:
    """How the base model is held, and how else to look at it.

    All ways where there is one learner or `all` is asked for: each learner takes a second for each.
    """
    if precision not in (None, "all"):
        base = find_base(precision)
        return base, (base,)
    hardware = this_hardware()
    if not device.here:
        fast = device.rates.get(torch.bfloat16, 1) > device.rates.get(torch.float32, 0)
        hardware = Hardware(device.name, bf16=fast)
    width = getattr(config.get_text_config(), "hidden_size", None)
    wanted, _ = decide(bf16, width, hardware)
    base = BASES[int(wanted)]
    return base, BASES if precision == "all" or learners == 1 else (base,)


def _learners(
    methods: Sequence[str], task_type: TaskType, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[Learner, ...]:
    """A learner for each method, with its `settings`."""
    out = []
    for method in methods:
        if method == FULL:
            out.append(Learner(FULL))
            continue
        own = {"task_type": task_type, **usual_settings(method), **settings.get(method, {})}
        config = make_config(method, **own)
        out.append(Learner(config.peft_type.lower(), {_NAME: config}))
    return tuple(out)


def _others(learners: Sequence[Learner], task_type: TaskType) -> tuple[Learner, ...]:
    taken = {each.name for each in learners}
    names = sorted(method_names(), key=lambda name: name != "lora")  # which learns most
    return _learners([name for name in names if name not in taken], task_type, {})


def _fields(method: str) -> set[str]:
    """The settings of a method; of `full` there are none."""
    if method == FULL:
        return set()
    return {field.name for field in fields(METHODS[PeftType(method.upper())].config_class)}


def _settings(
    overrides: Sequence[str], methods: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], TrainConfig]:
    """Settings of each method, and those of a run's `train`.

    Raises:
        ConfigError: A setting that neither has.
    """
    own: dict[str, dict[str, Any]] = {method: {} for method in methods}
    train: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        name = key.removeprefix("train.")
        having = [method for method in methods if key in _fields(method)]
        for method in having:
            own[method][key] = setting_value(method, key, text)
        if name in TrainConfig.model_fields:
            train[name] = parse_yaml(text, f"The value of `{key}`")
        elif not having:
            known = set().union(*(_fields(method) for method in methods))
            hint = did_you_mean(key, [*known, *TrainConfig.model_fields])
            raise ConfigError(f"There is no setting {key!r} to plan with.{hint}")
    try:
        return own, TrainConfig.model_validate(train)
    except ValidationError as error:
        raise ConfigError("\n".join(value_faults(error, train, "train").values())) from None


def _drawn(run: RunConfig, device: str, tell: Tell | None) -> tuple[RowSource, int | None]:
    """The rows of a run, and how many classes they have."""
    tokenizer = load_tokenizer(run.base_model, run.revision)
    room = room_for_text(run, tokenizer)
    sizes: list[tuple[DataConfig, int, np.ndarray]] = []
    label_names: list[str] | None = None
    lessons: dict[str, Lesson] = {}
    for name, adapter in run.adapters.items():
        alone = within(run.alone(name), room)
        key = alone.data, alone.train.seed
        found = next((own for *other, own in sizes if tuple(other) == key), None)
        if found is None:
            data = prepare_data(alone.data, tokenizer, run.task_type, alone.train.seed, tell)
            label_names = data.label_names
            found = row_sizes(data.train, run.task_type)
            sizes.append((*key, found))
        lessons[name] = Lesson(found, alone.train, frozenset(adapter.train))
    rows = DrawnRows(lessons, device, both=run.task_type is TaskType.SEQ_2_SEQ_LM)
    return rows, None if label_names is None else len(label_names)
