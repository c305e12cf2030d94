from __future__ import annotations

import pytest
import torch

from graft.methods import PromptTuning, PromptTuningConfig

from .conftest import HIDDEN, VOCAB


def start(shape, count: int = 4, **values) -> torch.Tensor:
    config = PromptTuningConfig(num_virtual_tokens=count, **values)
    return PromptTuning(config, shape).prompt_embeddings


def test_tokens_start_as_rows_of_the_vocabulary(shape):
    table = shape.embed(torch.arange(VOCAB))
    for config in ({}, {"prompt_tuning_init": "SAMPLE_VOCAB"}):
        rows = start(shape, **config)
        assert rows.shape == (4, HIDDEN)
        assert all((row == table).all(1).any() for row in rows)


def test_tokens_start_as_a_text(shape):
    table = shape.embed(torch.arange(VOCAB))
    rows = start(shape, prompt_tuning_init="TEXT", prompt_tuning_init_text="7 2 7")
    assert torch.equal(rows, table[[7, 2, 7, 7]])


def test_random_tokens_are_as_large_as_the_vocabularys(shape):
    rows = start(shape, 5000, prompt_tuning_init="RANDOM")
    table = shape.embed(torch.arange(VOCAB))
    assert rows.std().item() == pytest.approx(table.std().item(), rel=0.1)
    assert not any((row == table).all(1).any() for row in rows[:50])


def test_a_text_is_not_looked_up_to_load_an_adapter(shape):
    rows = start(
        shape,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="not a number",  # which this tokenizer cannot read
        inference_mode=True,
    )
    assert rows.shape == (4, HIDDEN)


def test_the_table_learns_and_is_no_view_of_the_embedding(shape):
    before = shape.embed(torch.arange(VOCAB)).clone()
    rows = start(shape)
    assert rows.requires_grad
    rows.data.zero_()
    assert torch.equal(shape.embed(torch.arange(VOCAB)), before)
