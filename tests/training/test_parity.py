"""Fifty steps of graft beside fifty of PEFT's: same start, same rows, same order, same losses.

The other side is a loop written out around PEFT's model on padded rows, with its own loss. BitFit,
which PEFT does not have, is compared with the biases of a plain model set to learn.
"""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import get_scheduler

import graft
from graft.config import TaskType
from graft.data.collate import Collator
from graft.training.batches import Order
from graft.training.config import TrainConfig
from interop.oracle import PEFT_WARNS, copy_weights
from tiny import make_tokenizer, tiny_llama

from .conftest import fit_one

STEPS, BATCH = 50, 4
TARGETS = {"target_modules": "all-linear"}
FACTORS = {
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
VIRTUAL = {"num_virtual_tokens": 5}
CASES = {
    "lora": ("LoraConfig", {"r": 4, **TARGETS}, 1e-2),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True, **TARGETS}, 1e-2),
    "ia3": ("IA3Config", FACTORS, 6e-2),
    "prompt": ("PromptTuningConfig", {**VIRTUAL, "prompt_tuning_init": "RANDOM"}, 5e-2),
    "p-tuning": ("PromptEncoderConfig", {**VIRTUAL, "encoder_hidden_size": 24}, 1e-2),
    "prefix": ("PrefixTuningConfig", VIRTUAL, 5e-2),
    "prefix-projection": (
        "PrefixTuningConfig",
        {**VIRTUAL, "prefix_projection": True, "encoder_hidden_size": 24},
        1e-2,
    ),
}
pytestmark = PEFT_WARNS


def settings(rate: float) -> TrainConfig:
    return TrainConfig(
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=rate,
        warmup_steps=5,
        logging_steps=1,
        max_grad_norm=0.5,
    )


def base(**fields: bool) -> torch.nn.Module:
    return tiny_llama(initializer_range=0.2, **fields)  # weights large enough to be led


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    """Rows of 4 to 20 tokens, the first third of each not learned."""
    dice = torch.Generator().manual_seed(2)
    out = []
    for length in torch.randint(4, 21, (42,), generator=dice).tolist():
        ids = torch.randint(4, 40, (length,), generator=dice).tolist()
        prompt = length // 3
        out.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return out


def by_graft(model: graft.PeftModel, rows, rate: float) -> list[float]:
    collate = Collator(make_tokenizer(), TaskType.CAUSAL_LM)
    run = fit_one(model, rows, None, collate, settings(rate), task_type=TaskType.CAUSAL_LM)
    return [record["loss"] for record in run.records]


def by_hand(model: torch.nn.Module, rows, rate: float) -> list[float]:
    """The losses of a plain loop over `model`, of which whatever requires a gradient learns."""
    wanted = settings(rate)
    collate = Collator(make_tokenizer(), TaskType.CAUSAL_LM)
    order = Order(len(rows), BATCH, wanted.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, wanted.warmup_steps, STEPS)
    losses = []
    for step in range(STEPS):
        batch = collate([rows[i] for i in order.step(step)])
        batch["labels"][:, 0] = -100  # nothing stands before it but, sometimes, virtual tokens
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, wanted.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def assert_learned_alike(ours: list[float], theirs: list[float]) -> None:
    assert len(ours) == len(theirs) == STEPS
    gain = sum(theirs[:10]) / 10 - sum(theirs[-10:]) / 10
    assert gain > 0.1  # else equal losses would say little
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_equal_pefts(rows, name):
    config, fields, rate = CASES[name]
    arguments = {"task_type": "CAUSAL_LM", **fields}
    torch.manual_seed(1)
    theirs = peft.get_peft_model(base(), getattr(peft, config)(**arguments))
    ours = graft.get_peft_model(base(), getattr(graft, config)(**arguments))
    copy_weights(theirs, ours)
    assert_learned_alike(by_graft(ours, rows, rate), by_hand(theirs.train(), rows, rate))


def test_fifty_steps_of_biases_equal_a_model_whose_biases_learn(rows):
    plain = base(attention_bias=True, mlp_bias=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    ours = graft.get_peft_model(
        base(attention_bias=True, mlp_bias=True), graft.BitFitConfig(task_type=TaskType.CAUSAL_LM)
    )
    assert_learned_alike(by_graft(ours, rows, 2e-2), by_hand(plain.train(), rows, 2e-2))
