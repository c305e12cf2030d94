"""A tiny language model and a tiny classifier with random weights, and rows for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from graft.adapt import PeftModel, get_peft_model
from graft.config import PeftType, TaskType
from graft.data.collate import Collator
from graft.methods import METHODS, make_config
from graft.training.config import TrainConfig
from graft.training.learner import Run
from graft.training.loop import FitResult, Loop
from graft.training.optimizer import trainable_parameters
from graft.training.report import Callback
from tiny import SENTENCES, make_tokenizer, tiny_llama

LM = TaskType.CAUSAL_LM


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def needed_fields(kind: str) -> dict:
    """Settings without which the config of a method cannot be made."""
    prompts = METHODS[PeftType(kind.upper())].config_class.is_prompt_learning
    return {"num_virtual_tokens": 3} if prompts else {}


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def lm_rows(tokenizer) -> list[dict]:
    """Rows of different lengths, with a different number of learned tokens in each."""
    rows = []
    for number, sentence in enumerate(SENTENCES):
        ids = tokenizer(sentence)["input_ids"] + [2]
        masked = number % 4  # the first tokens are a prompt
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


@pytest.fixture
def lm_collator(tokenizer) -> Collator:
    return Collator(tokenizer, TaskType.CAUSAL_LM)


@pytest.fixture
def class_rows(tokenizer) -> list[dict]:
    return [
        {"input_ids": tokenizer(sentence)["input_ids"], "labels": int("moon" in sentence)}
        for sentence in SENTENCES
    ]


@pytest.fixture
def class_collator(tokenizer) -> Collator:
    return Collator(tokenizer, TaskType.SEQ_CLS)


@pytest.fixture
def settings() -> TrainConfig:
    return TrainConfig(
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_steps=6,
        logging_steps=1,
        seed=3,
        bf16=False,
    )


@pytest.fixture
def data_file(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def raw_run(base_folder, data_file, tmp_path) -> dict:
    """A run file's settings for the tiny language model."""
    return {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "r": 2, "target_modules": "all-linear"}},
        "data": {"train": str(data_file), "max_length": 32, "eval_fraction": 0.2},
        "train": {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 2,
            "save_steps": 2,
            "learning_rate": 1e-2,
        },
    }


def fit_one(
    model,
    rows,
    eval_rows,
    collate,
    settings,
    *,
    task_type,
    store=None,
    resume_from=None,
    callbacks=(),
    largest_first=False,
) -> FitResult:
    """Train whatever is trainable in `model`, as a run of one adapter does."""
    loop = Loop(model, Run(rows, eval_rows, settings), collate, task_type, store)
    if resume_from is not None:
        loop.resume(resume_from)
    return loop.run(callbacks, largest_first)[""]


def attach(base, method="lora", task_type=LM, **fields) -> PeftModel:
    torch.manual_seed(1)
    if method == "lora":
        fields = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **fields}
    return get_peft_model(base, make_config(method, task_type=task_type, **fields))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


class StopAt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt
