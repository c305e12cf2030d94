from __future__ import annotations

import pytest
import torch
from torch import nn

from graft.errors import ConfigError
from graft.methods import IA3, IA3Config
from graft.methods.affine import merged

from .conftest import conv1d, linear, make_view


@pytest.mark.parametrize("make", [linear, conv1d])
def test_an_attention_target_scales_its_output(make):
    view = make()
    adapter = IA3(IA3Config(target_modules=["q_proj"], feedforward_modules=[]), view)
    assert adapter.ia3_l.shape == (4, 1)
    adapter.ia3_l.data.normal_()
    weight, bias = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(weight, view.weight * adapter.ia3_l, rtol=0, atol=1e-6)
    torch.testing.assert_close(bias, view.bias * adapter.ia3_l[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [linear, conv1d])
@pytest.mark.parametrize("named", [["q_proj"], r".*\.(q|k)_proj"])
def test_a_feed_forward_target_scales_its_input(make, named):
    view = make()
    adapter = IA3(IA3Config(feedforward_modules=named), view)
    assert adapter.ia3_l.shape == (1, 6)
    adapter.ia3_l.data.normal_()
    weight, bias = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(weight, view.weight * adapter.ia3_l, rtol=0, atol=1e-6)
    assert torch.equal(bias, view.bias)


def test_the_role_of_a_layer_decides_where_the_config_is_silent():
    view = linear()
    assert not IA3(IA3Config(), view).feedforward
    view.role = "down"
    assert IA3(IA3Config(), view).feedforward


def test_it_starts_as_the_identity():
    adapter = IA3(IA3Config(), linear())
    assert torch.equal(adapter.ia3_l, torch.ones(4, 1))
    assert not torch.equal(IA3(IA3Config(init_ia3_weights=False), linear()).ia3_l, adapter.ia3_l)


def test_a_convolution_has_factors_per_channel():
    view = make_view(nn.Conv2d(3, 4, 2), "conv")
    assert IA3(IA3Config(feedforward_modules=["conv"]), view).ia3_l.shape == (1, 3, 1, 1)
    assert IA3(IA3Config(), view).ia3_l.shape == (1, 4, 1, 1)


def test_the_choice_is_written_down():
    key, down = linear(path="layers.0.k_proj"), linear(path="layers.0.down_proj")
    down.role = "down"
    config = IA3Config()
    found = IA3.resolved(config, [key, down], ["k_proj", "down_proj"])
    assert found.target_modules == ["k_proj", "down_proj"]
    assert found.feedforward_modules == ["down_proj"]
    assert config.feedforward_modules is None
    said = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=[])
    assert IA3.resolved(said, [key, down], ["k_proj", "down_proj"]).feedforward_modules == []


@pytest.mark.parametrize("forward", [["wo"], r".*\.wo", "k_proj"])
def test_a_feed_forward_that_matches_nothing_is_refused(forward):
    config = IA3Config(feedforward_modules=forward)
    with pytest.raises(ConfigError, match="matches none of the targets"):
        IA3.resolved(config, [linear(path="layers.0.k_proj")], ["k_proj"])


def test_what_peft_has_no_field_for_is_in_the_targets():
    chosen = [linear(path="layers.1.k_proj")]
    for wanted in (1, [1], 0):
        config = IA3Config(target_modules=["k_proj"], layers_to_transform=wanted)
        found = IA3.resolved(config, chosen, ["layers.1.k_proj"])
        assert found.target_modules == ["layers.1.k_proj"]
        assert "layers_to_transform" not in found.to_dict()
