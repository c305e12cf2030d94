"""Layers and a base model's shape, as methods see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.adapt.layers import LayerView, view_of
from graft.methods import BaseShape

VOCAB, HIDDEN, LAYERS, HEADS, HEAD_DIM = 11, 8, 2, 2, 3

ViewOf = Callable[..., LayerView]


def make_view(module: nn.Module, path: str = "layers.0.q_proj", role: str | None = None):
    view = view_of(module, path)
    assert view is not None
    view.role = role
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)  # zeros and ones hide faults
    return view


def linear(inputs: int = 6, outputs: int = 4, bias: bool = True, path: str = "layers.0.q_proj"):
    return make_view(nn.Linear(inputs, outputs, bias=bias), path)


def conv1d(inputs: int = 6, outputs: int = 4):
    return make_view(Conv1D(outputs, inputs))


@pytest.fixture
def shape() -> BaseShape:
    """A base model's shape with a real table of embeddings and made-up key-values."""
    return make_shape()


def make_shape(submodules: int = 1, layers: int = LAYERS) -> BaseShape:
    table = torch.randn(VOCAB, HIDDEN)

    def key_values(ids: Tensor) -> Tensor:
        """Numbers that tell layer, keys or values, head, token and position apart."""
        sizes = (layers, 2, HEADS, len(ids), HEAD_DIM)
        return torch.arange(float(torch.Size(sizes).numel())).view(sizes)

    return BaseShape(
        hidden=HIDDEN,
        num_layers=layers,
        attention_heads=4,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        submodules=submodules,
        dtype=torch.float32,
        device=torch.device("cpu"),
        embed=lambda ids: table[ids],
        tokenize=lambda text: [int(word) for word in text.split()],
        key_values=key_values,
    )
