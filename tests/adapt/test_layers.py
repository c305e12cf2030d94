"""Views: every kind of layer as a matrix, read, written and restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graft.adapt.layers import view_of
from graft.errors import ConfigError, MergeError

I, O = 6, 4  # noqa: E741
LAYERS = {
    "linear": (lambda: nn.Linear(I, O), (O, I)),
    "linear without bias": (lambda: nn.Linear(I, O, bias=False), (O, I)),
    "conv1d": (lambda: Conv1D(O, I), (O, I)),
    "embedding": (lambda: nn.Embedding(I, O), (O, I)),
    "convolution": (lambda: nn.Conv2d(I, O, (2, 3)), (O, I * 6)),
    "convolution of one axis": (lambda: nn.Conv1d(I, O, 3), (O, I * 3)),
    "norm": (lambda: nn.LayerNorm(O), (O,)),
}
each_layer = pytest.mark.parametrize(
    ("make", "shape"), LAYERS.values(), ids=[name.replace(" ", "-") for name in LAYERS]
)


@each_layer
def test_a_layer_is_a_matrix(make, shape):
    module = make()
    view = view_of(module, "some.path")
    assert view.module is view.owner is module
    assert view.path == view.site_path == view.target_path == view.disk_path == "some.path"
    assert view.weight.shape == shape
    assert view.out_features == O
    assert view.in_features == (O if view.kind == "norm" else I)
    assert view.dtype == torch.float32
    assert view.device.type == "cpu"
    assert (view.bias is None) == (getattr(module, "bias", None) is None)


def test_kinds():
    kinds = [view_of(make(), "p").kind for make, _ in LAYERS.values()]
    assert kinds == ["linear", "linear", "conv1d", "embedding", "conv", "conv", "norm"]
    assert view_of(nn.ReLU(), "p") is None
    assert view_of(nn.Sequential(nn.Linear(2, 2)), "p") is None


class Half(nn.Linear):
    """A subclass, as quantised layers are."""


def test_a_subclass_is_what_it_derives_from():
    assert view_of(Half(3, 2), "p").kind == "linear"


@each_layer
def test_what_is_written_is_read_and_restored_exactly(make, shape):
    module = make()
    view = view_of(module, "p")
    own_weight, own_bias = module.weight, getattr(module, "bias", None)
    before, matrix = own_weight.clone(), view.weight.clone()
    weight = torch.randn(shape)
    bias = None if own_bias is None else torch.randn(O)
    for _ in range(2):  # a second merge on top keeps the original
        view.write(weight, bias)
        assert module.weight is not own_weight
        assert torch.equal(view_of(module, "p").weight, weight)
        assert torch.equal(view.weight, matrix)  # the base's own, also now
        if bias is not None:
            assert torch.equal(module.bias, bias)
            assert view.bias is own_bias
    view.restore()
    assert module.weight is own_weight
    assert getattr(module, "bias", None) is own_bias
    assert torch.equal(module.weight, before)
    view.restore()  # nothing is merged: nothing happens
    assert module.weight is own_weight


def test_a_layer_without_bias_gets_one_and_loses_it():
    module = nn.Linear(I, O, bias=False)
    view = view_of(module, "p")
    view.write(view.weight, torch.ones(O))
    assert module.bias.tolist() == [1] * O
    assert view.bias is None
    view.restore()
    assert module.bias is None


def test_layers_tied_to_a_merged_one_do_not_change():
    module, tied = nn.Embedding(I, O), nn.Linear(O, I, bias=False)
    tied.weight = module.weight
    view, before = view_of(module, "p"), module.weight.clone()
    view.write(torch.randn(O, I), None)
    assert torch.equal(tied.weight, before)
    view.restore()
    assert tied.weight is module.weight


def test_merged_values_have_the_layers_dtype_and_do_not_learn():
    module = nn.Linear(I, O).bfloat16()
    view = view_of(module, "p")
    view.write(torch.randn(O, I), torch.randn(O))
    assert module.weight.dtype == module.bias.dtype == torch.bfloat16
    assert not module.weight.requires_grad
    assert not module.bias.requires_grad


def test_a_quantised_layer_is_not_written():
    module = nn.Linear(I, O)
    module.weight = nn.Parameter(torch.zeros(O, I, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(MergeError, match=r"p is quantised \(torch.uint8\); load .* unquantised"):
        view_of(module, "p").write(torch.zeros(O, I), None)


def test_shapes_on_disk_are_those_of_peft():
    linear, conv = view_of(nn.Linear(I, O), "p"), view_of(nn.Conv2d(I, O, (2, 3)), "p")
    assert linear.low_rank_shapes(2) == ((2, I), (O, 2))
    assert linear.vector_shape(O) == (O,)
    assert linear.factor_shape(inputs=True) == (1, I)
    assert linear.factor_shape(inputs=False) == (O, 1)
    assert conv.low_rank_shapes(2) == ((2, I, 2, 3), (O, 2, 1, 1))
    assert conv.vector_shape(O) == (1, O, 1, 1)
    assert conv.factor_shape(inputs=True) == (1, I, 1, 1)
    assert conv.factor_shape(inputs=False) == (1, O, 1, 1)


def test_a_grouped_convolution_has_no_low_rank_update_and_input_factors_only_apart():
    view = view_of(nn.Conv2d(4, 6, 3, groups=2), "conv")
    with pytest.raises(ConfigError, match="conv is a convolution in 2 groups"):
        view.low_rank_shapes(2)
    with pytest.raises(MergeError, match="a grouped convolution's inputs do not merge"):
        view.over_columns(torch.ones(4))
