from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from graft.methods import PromptEncoderConfig, PTuning

from .conftest import HIDDEN


def encoder(shape, **values) -> nn.Module:
    return PTuning(PromptEncoderConfig(num_virtual_tokens=4, **values), shape).encoder


@pytest.mark.parametrize(("kind", "layers"), [("MLP", 2), ("LSTM", 1), ("LSTM", 2), ("LSTM", 3)])
@pytest.mark.parametrize("width", [None, 5])
def test_parameters_and_values_are_those_of_peft(shape, kind, width, layers):
    values = {
        "encoder_reparameterization_type": kind,
        "encoder_hidden_size": width,
        "encoder_num_layers": layers,
    }
    theirs = peft.PromptEncoder(
        peft.PromptEncoderConfig(
            num_virtual_tokens=4,
            num_transformer_submodules=1,
            token_dim=HIDDEN,
            **{**values, "encoder_hidden_size": width or HIDDEN},
        )
    )
    ours = encoder(shape, **values)
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    expected = theirs(torch.arange(4)[None])[0]
    torch.testing.assert_close(ours(), expected, rtol=0, atol=1e-6)


def test_dropout_acts_after_each_relu_of_the_mlp(shape):
    ours = encoder(shape, encoder_dropout=0.5)
    settled = ours.eval()()
    ours.train()
    assert not torch.equal(ours(), settled)
    torch.manual_seed(5)
    found = ours()
    torch.manual_seed(5)
    hidden = ours.embedding.weight
    for index, layer in enumerate(ours.mlp_head):
        hidden = layer(hidden)
        if index % 2:
            hidden = nn.functional.dropout(hidden, 0.5)
    torch.testing.assert_close(found, hidden, rtol=0, atol=0)


def test_dropout_of_the_lstm_is_between_its_layers(shape):
    values = {"encoder_reparameterization_type": "lstm", "encoder_dropout": 0.5}
    deep = encoder(shape, encoder_num_layers=2, **values).train()
    assert deep.lstm_head.dropout == 0.5
    assert not torch.equal(deep(), deep())
    flat = encoder(shape, encoder_num_layers=1, **values).train()
    assert torch.equal(flat(), flat())


def test_the_encoder_is_in_the_base_models_dtype(shape):
    ours = encoder(shape)
    assert {parameter.dtype for parameter in ours.parameters()} == {shape.dtype}
