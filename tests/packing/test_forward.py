"""Packed rows whose adapters reach parts of a model that only some adapters do."""

from __future__ import annotations

import pytest
import torch

from graft import LoraConfig, PeftModel
from graft.packing import PackedForward
from tiny import tiny_llama

REACHES = {
    "norm": {"modules_to_save": ["input_layernorm"]},
    "words": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "ids": {"target_modules": ["q_proj", "embed_tokens"]},
    "plain": {},
}


def test_rows_that_replace_or_adapt_other_modules_than_their_neighbours():
    model = PeftModel(tiny_llama())
    for name, reach in REACHES.items():
        model.add_adapter(name, LoraConfig(r=2, task_type="CAUSAL_LM", **reach))
    model.set_adapter("plain")
    torch.manual_seed(1)
    with torch.no_grad():
        for name in REACHES:
            for parameter in model.adapter(name).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    names = [*REACHES, "norm"]
    rows = [torch.randint(3, 300, (length,)) for length in (5, 4, 3, 6, 5, 4)]
    _, got = PackedForward(model).loss(rows, rows, adapter_names=names)
    for row, name, own in zip(rows, names, got, strict=True):
        alone = model(input_ids=row[None], labels=row[None], adapter_names=[name]).loss
        assert own.item() == pytest.approx(alone.item() * (len(row) - 1), rel=1e-5)
