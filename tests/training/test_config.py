from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import TrainingArguments

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.methods import METHODS, LoraConfig
from graft.training.config import RunConfig, TrainConfig

from .conftest import needed_fields


def make_run(**changes) -> RunConfig:
    run = {
        "base_model": "org/base",
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "r": 3}},
        "data": {"train": "rows.jsonl"},
        "train": {"output_dir": "out"},
    }
    return RunConfig.model_validate({**run, **changes})


def test_names_are_those_of_training_arguments():
    theirs = inspect.signature(TrainingArguments).parameters
    # `overwrite_output_dir` and `early_stopping_patience` are what earlier releases and the
    # callback of that name call them.
    ours = set(TrainConfig.model_fields) - {"overwrite_output_dir", "early_stopping_patience"}
    removed = {"warmup_ratio"} - set(theirs)
    assert ours - removed <= set(theirs)


def test_every_setting_is_explained():
    for model in (RunConfig, TrainConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_an_adapter_becomes_a_peft_config():
    config = make_run().adapter.peft_config(TaskType.CAUSAL_LM)
    assert config == LoraConfig(r=3, task_type=TaskType.CAUSAL_LM)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("own", "common", "expected"), [(1e-3, 1e-4, 1e-3), (None, 1e-4, 1e-4), (None, None, None)]
)
def test_learning_rate_of_adapter_then_run_then_method(kind, own, common, expected):
    run = make_run(
        adapters={"a": {"method": kind.lower(), "learning_rate": own, **needed_fields(kind)}},
        train={"output_dir": "out", "learning_rate": common},
    )
    resolved = run.resolved(bf16=True)
    assert resolved.train.learning_rate == (expected or METHODS[kind].learning_rate)
    assert resolved.train.bf16 is True
    assert resolved.resolved(bf16=True) == resolved


def test_two_adapters_are_two_runs():
    lora = {"method": "lora"}
    with pytest.raises(ValidationError, match=r"one adapter a run.*\(a, b\)"):
        make_run(adapters={"a": lora, "b": lora})
    with pytest.raises(ValidationError, match="name one adapter"):
        make_run(adapters={})


def test_a_home_folder_is_meant():
    assert TrainConfig(output_dir="~/run").output_dir == str(Path.home() / "run")
    data = DataConfig(train=["~/a.jsonl", "b.jsonl"], eval="~/c.jsonl")
    assert data.train == [str(Path.home() / "a.jsonl"), "b.jsonl"]
    assert data.eval == str(Path.home() / "c.jsonl")


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_that_are_none(steps):
    with pytest.raises(ValidationError, match=f"1 or more, or -1.*not {steps}"):
        TrainConfig(max_steps=steps)
