from __future__ import annotations

import inspect
import re
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
    # callback of that name call them; adapters that share a pass are graft's alone.
    graft_has = {"overwrite_output_dir", "early_stopping_patience", "tokens_per_pass"}
    ours = set(TrainConfig.model_fields) - graft_has
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


def several(**adapters) -> RunConfig:
    return make_run(
        adapters={name: {"method": "lora", **own} for name, own in adapters.items()},
        data={"train": "rows.jsonl", "eval_fraction": 0.1},
        train={"output_dir": "out", "num_train_epochs": 3.0, "seed": 1, "warmup_ratio": 0.1},
    )


def test_each_of_several_adapters_has_the_run_that_trains_it_alone():
    run = several(
        a={},
        b={
            "learning_rate": 1e-2,
            "data": {"eval": "held.jsonl", "max_length": 64},
            "train": {"seed": 2, "max_steps": 5, "warmup_steps": 2},
        },
    )
    a, b = run.alone("a"), run.alone("b")
    assert a == make_run(
        adapters={"a": {"method": "lora"}},
        data={"train": "rows.jsonl", "eval_fraction": 0.1},
        train=run.train.model_copy(update={"output_dir": str(Path("out", "a"))}),
    )
    assert b.adapter.learning_rate == 1e-2
    assert b.resolved(bf16=False).train.learning_rate == 1e-2
    # What takes a setting's place takes that of its rival too.
    assert (b.data.train, b.data.eval, b.data.eval_fraction) == ("rows.jsonl", "held.jsonl", 0.0)
    assert (b.train.seed, b.train.max_steps, b.train.num_train_epochs) == (2, 5, 1.0)
    assert (b.train.warmup_steps, b.train.warmup_ratio) == (2, 0.0)
    assert b.train.output_dir == str(Path("out", "b"))
    assert b.alone("b") == b
    assert run.alone("a").alone("a") == a


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({}, "name one adapter"),
        ({"a": {}, "A": {}}, "'a' and 'A' would be the same folder"),
        ({"a": {}, "../b": {}}, "'../b' cannot be the name of one of several"),
        ({"a": {}, "checkpoint-3": {}}, "do not begin with `checkpoint-`"),
        ({"a": {"train": {"output_dir": "x"}}}, "output_dir is the same for all adapters"),
        ({"a": {"data": {"eval": "x", "eval_fraction": 0.1}}}, "adapter 'a': give either eval or"),
        ({"a": {"learning_rate": 0.1, "train": {"learning_rate": 0.2}}}, "two learning rates"),
        ({"a": {"train": {"seed": -1}}}, "adapter 'a': seed: "),
    ],
)
def test_several_adapters_that_cannot_be(adapters, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        several(**adapters)


def test_a_home_folder_is_meant():
    assert TrainConfig(output_dir="~/run").output_dir == str(Path.home() / "run")
    data = DataConfig(train=["~/a.jsonl", "b.jsonl"], eval="~/c.jsonl")
    assert data.train == [str(Path.home() / "a.jsonl"), "b.jsonl"]
    assert data.eval == str(Path.home() / "c.jsonl")


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_that_are_none(steps):
    with pytest.raises(ValidationError, match=f"1 or more, or -1.*not {steps}"):
        TrainConfig(max_steps=steps)
