"""A run that is gone on with is the one that was never interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.errors import CheckpointError
from graft.training.report import Callback
from graft.training.state import Store
from tiny import tiny_bert, tiny_llama

from .conftest import LM, StopAt, attach, fit_one, weights


def without_times(path: Path) -> list[dict]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    clocks = ("seconds", "tokens_per_second", "peak_memory_gib")
    return [{k: v for k, v in record.items() if k not in clocks} for record in records]


def state_of(checkpoint: Path) -> tuple[dict, dict]:
    values = json.loads((checkpoint / "training_state.json").read_text())
    del values["progress"]["seconds"]
    tensors = {
        f"{path.name}:{name}": tensor
        for path in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    return values, tensors


CASES = {
    "lora with dropout": ("lora", {"lora_dropout": 0.3}, False),
    "ia3": ("ia3", {}, False),
    "bitfit": ("bitfit", {}, False),
    "prompt": ("prompt_tuning", {"num_virtual_tokens": 3}, False),
    "encoder of P-Tuning": ("p_tuning", {"num_virtual_tokens": 3}, False),
    "encoder with dropout": ("p_tuning", {"num_virtual_tokens": 3, "encoder_dropout": 0.3}, False),
    "encoder of a prefix": (
        "prefix_tuning",
        {"num_virtual_tokens": 3, "prefix_projection": True},
        False,
    ),
    "classifier with dropout": ("lora", {}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, tmp_path, request, settings):
    method, fields, classify = CASES[case]
    kind = "class" if classify else "lm"
    rows, collator = (request.getfixturevalue(f"{kind}_{x}") for x in ("rows", "collator"))
    task_type = TaskType.SEQ_CLS if classify else LM
    build = tiny_bert if classify else lambda: tiny_llama(dropout=0.1)
    # The interruption falls into an epoch, between two lines of the log, after an evaluation.
    changes = {"max_steps": 12, "save_steps": 5, "logging_steps": 3, "eval_steps": 4}
    settings = settings.model_copy(update={**changes, "load_best_model_at_end": True})

    def start(folder: Path, *callbacks: Callback, resume: bool = False) -> PeftModel:
        checkpoint = folder / "checkpoint-5" if resume else None
        if resume:
            model = PeftModel.from_pretrained(build(), checkpoint, is_trainable=True)
        else:
            model = attach(build(), method, task_type, **fields)
        fit_one(
            model,
            rows[5:],
            rows[:5],
            collator,
            settings,
            task_type=task_type,
            store=Store(folder),
            resume_from=checkpoint,
            callbacks=callbacks,
        )
        return model

    whole = start(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "parts", StopAt(8))
    resumed = start(tmp_path / "parts", resume=True)

    assert weights(resumed).keys() == weights(whole).keys()
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name
    logs = [without_times(tmp_path / part / "train_log.jsonl") for part in ("whole", "parts")]
    assert logs[0] == logs[1]
    for checkpoint in ("checkpoint-10", "checkpoint-12"):
        values, tensors = state_of(tmp_path / "whole" / checkpoint)
        same_values, same_tensors = state_of(tmp_path / "parts" / checkpoint)
        assert values == same_values
        assert tensors.keys() == same_tensors.keys()
        assert any("exp_avg_sq" in name for name in tensors)
        for name, tensor in tensors.items():
            assert torch.equal(same_tensors[name], tensor), name


def test_a_crash_while_saving_leaves_the_checkpoint_before(
    tmp_path, lm_rows, lm_collator, settings
):
    settings = settings.model_copy(update={"save_steps": 2})
    saved = []

    def fail_on_the_second(name, folder: Path) -> None:
        saved.append(folder)
        if len(saved) == 2:
            raise OSError("disk full")

    store = Store(tmp_path, save_beside=fail_on_the_second)
    with pytest.raises(OSError, match="disk full"):
        fit_one(
            attach(tiny_llama()), lm_rows, None, lm_collator, settings, task_type=LM, store=store
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "train_log.jsonl"]

    resumed = PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-2", is_trainable=True)
    fit_one(
        resumed,
        lm_rows,
        None,
        lm_collator,
        settings,
        task_type=LM,
        store=Store(tmp_path),
        resume_from=tmp_path / "checkpoint-2",
    )
    whole = attach(tiny_llama())
    fit_one(whole, lm_rows, None, lm_collator, settings, task_type=LM)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight)


def test_another_run_is_not_resumed(tmp_path, lm_rows, lm_collator, settings):
    store = Store(tmp_path, origins={None: {"train.seed": 3, "data.train": "a"}})
    model = attach(tiny_llama())
    fit_one(model, lm_rows, None, lm_collator, settings, task_type=LM, store=store)
    before = (tmp_path / "train_log.jsonl").read_text()
    other = Store(tmp_path, origins={None: {"train.seed": 4, "data.train": "a"}})
    with pytest.raises(CheckpointError, match=r"train\.seed was 3 and is 4\. "):
        fit_one(
            model,
            lm_rows,
            None,
            lm_collator,
            settings,
            task_type=LM,
            store=other,
            resume_from=tmp_path / "checkpoint-6",
        )
    assert (tmp_path / "train_log.jsonl").read_text() == before


def test_old_checkpoints_are_removed(tmp_path, lm_rows, lm_collator, settings):
    settings = settings.model_copy(update={"save_steps": 1})
    store = Store(tmp_path, keep=2)
    fit_one(attach(tiny_llama()), lm_rows, None, lm_collator, settings, task_type=LM, store=store)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
