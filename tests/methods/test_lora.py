from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graft.config import PeftConfig
from graft.errors import ConfigError
from graft.methods import BitFit, LoraConfig
from graft.methods.affine import merged
from graft.methods.lora import Lora
from graft.methods.token_rows import TokenRows

from .conftest import conv1d, linear, make_view

PATH = "model.layers.1.self_attn.q_proj"


def weight_of(adapter: Lora, view) -> torch.Tensor:
    """The weight that the layer acts with."""
    return merged(view, [adapter.affine(view)])[0]


# --- scaling and ranks ----------------------------------------------------------------------------


def test_scaling():
    assert LoraConfig(r=4, lora_alpha=6).scaling(PATH) == 1.5
    assert LoraConfig(r=4, lora_alpha=6, use_rslora=True).scaling(PATH) == 3.0


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        (r".*\.1\..*q_proj", True),
        ("^model.layers.1.self_attn.q_proj", True),
        ("^layers.1.self_attn.q_proj", False),
        ("proj", False),
        ("q_proj_", False),
        ("k_proj", False),
    ],
)
def test_patterns_are_for_the_end_of_a_path(pattern, hit):
    config = LoraConfig(r=8, lora_alpha=8, rank_pattern={pattern: 2}, alpha_pattern={pattern: 10})
    assert config.rank(PATH) == (2 if hit else 8)
    assert config.scaling(PATH) == (5.0 if hit else 1.0)


def test_the_first_pattern_wins():
    config = LoraConfig(rank_pattern={r".*\.1\..*": 3, "q_proj": 2})
    assert config.rank(PATH) == 3
    assert config.rank(PATH.replace(".1.", ".0.")) == 2


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_without_a_target_is_refused(field):
    config = LoraConfig(**{field: {"q_porj": 4}})
    layers = [linear(path=PATH)]
    with pytest.raises(ConfigError, match=rf"{field}: 'q_porj' matches no target.*q_proj"):
        Lora.resolved(config, layers, ["q_proj"])
    trained = config.changed(inference_mode=True)
    assert Lora.resolved(trained, layers, ["q_proj"]).target_modules == ["q_proj"]


# --- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [True, "gaussian", "pissa", "pissa_niter_8", "olora"])
@pytest.mark.parametrize("make", [linear, conv1d])
@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_every_start_is_the_identity(make, start, more):
    view = make()
    adapter = Lora(LoraConfig(r=2, lora_alpha=3, init_lora_weights=start, **more), view)
    weight, bias = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(weight, view.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(bias, view.bias, rtol=0, atol=1e-6)


def test_a_start_for_tests_is_not_the_identity():
    view = linear()
    adapter = Lora(LoraConfig(init_lora_weights=False), view)
    assert not torch.allclose(weight_of(adapter, view), view.weight)
    table = make_view(nn.Embedding(7, 5))
    adapter = Lora(LoraConfig(init_lora_weights=False), table)
    assert not torch.allclose(weight_of(adapter, table), table.weight)


def test_a_gaussian_start_has_the_deviation_one_over_r():
    adapter = Lora(LoraConfig(r=16, init_lora_weights="gaussian"), linear(2000, 4))
    assert adapter.lora_A.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_a_uniform_start_is_that_of_a_linear_layer():
    adapter = Lora(LoraConfig(r=16), linear(900, 4))
    assert adapter.lora_A.abs().max().item() == pytest.approx(1 / math.sqrt(900), rel=0.01)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16"])
def test_pissa_holds_the_largest_components(start):
    view = linear(6, 5)
    left, _, right = torch.linalg.svd(torch.randn(5, 6), full_matrices=False)
    # Far apart, as the fast decomposition is a random one.
    view.module.weight.data = left @ torch.tensor([9.0, 6.0, 0.1, 0.1, 0.1]).diag() @ right
    adapter = Lora(LoraConfig(r=2, lora_alpha=3, init_lora_weights=start), view)
    update = adapter.scaling * adapter.lora_B @ adapter.lora_A
    largest = left[:, :2] @ torch.tensor([9.0, 6.0]).diag() @ right[:2]
    torch.testing.assert_close(update, largest, rtol=0, atol=1e-4)


def test_olora_starts_orthogonal():
    adapter = Lora(LoraConfig(r=3, init_lora_weights="olora"), linear(6, 5))
    torch.testing.assert_close(adapter.lora_B.T @ adapter.lora_B, torch.eye(3), rtol=0, atol=1e-5)


def test_what_was_taken_out_of_the_weight_stays_out():
    view = linear()
    adapter = Lora(LoraConfig(r=2, init_lora_weights="pissa"), view)
    taken = adapter.scaling * (adapter.lora_B @ adapter.lora_A).detach()
    adapter.lora_B.data *= 3
    torch.testing.assert_close(weight_of(adapter, view), view.weight + 2 * taken, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (linear, {"r": 5, "init_lora_weights": "pissa"}, "has rank 4 at most; r=5"),
        (linear, {"r": 5, "init_lora_weights": "olora"}, "has rank 4 at most; r=5"),
        (lambda: make_view(nn.Embedding(7, 5)), {"init_lora_weights": "olora"}, "linear layers"),
        (lambda: make_view(nn.Embedding(7, 5)), {"use_dora": True}, "linear layers and conv"),
        (lambda: make_view(nn.Conv2d(3, 4, 2)), {"lora_bias": True}, "linear layers, not"),
    ],
)
def test_what_a_layer_cannot_have_is_refused(make, options, said):
    with pytest.raises(ConfigError, match=said):
        Lora(LoraConfig(**options), make())


# --- DoRA and biases ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, conv1d, lambda: linear(bias=False)])
def test_dora_is_a_magnitude_times_a_direction(make):
    view = make()
    adapter = Lora(LoraConfig(r=2, lora_alpha=3, use_dora=True, init_lora_weights=False), view)
    adapter.lora_magnitude_vector.data.uniform_(0.5, 2)
    direction = view.weight + 1.5 * adapter.lora_B @ adapter.lora_A
    expected = adapter.lora_magnitude_vector[:, None] * direction / direction.norm(dim=1)[:, None]
    weight, bias = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    if view.bias is None:
        assert bias is None
    else:
        torch.testing.assert_close(bias, view.bias, rtol=0, atol=1e-6)


def test_the_norm_is_a_constant_to_the_gradient():
    view = linear()
    adapter = Lora(LoraConfig(r=2, use_dora=True, init_lora_weights=False), view)
    adapter.affine(view).out_scale.sum().backward()
    assert adapter.lora_magnitude_vector.grad is not None
    assert adapter.lora_A.grad is None
    assert adapter.lora_B.grad is None


@pytest.mark.parametrize("dora", [False, True])
def test_a_trained_bias_replaces_the_bases(dora):
    view = linear()
    adapter = Lora(LoraConfig(bias="lora_only", use_dora=dora), view)
    adapter.bias.data.normal_()
    if dora:
        adapter.lora_magnitude_vector.data *= 1.7
    _, bias = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(bias, adapter.bias.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", ["none", "lora_only"])
@pytest.mark.parametrize("own", [True, False])
def test_a_bias_of_b_is_scaled_and_added(bias, own):
    view = linear(bias=own)
    adapter = Lora(LoraConfig(r=2, lora_alpha=3, lora_bias=True, bias=bias), view)
    adapter.lora_bias.data.normal_()
    if own and bias == "lora_only":
        adapter.bias.data.normal_()
    start = adapter.bias if adapter.bias is not None else view.bias
    expected = 1.5 * adapter.lora_bias + (0 if start is None else start)
    _, found = merged(view, [adapter.affine(view)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_beside_the_targets():
    table = make_view(nn.Embedding(7, 5), "embed_tokens", role="embedding")
    other = linear()
    assert Lora.elsewhere(LoraConfig(), other) is None
    assert isinstance(Lora.elsewhere(LoraConfig(bias="all"), other), BitFit)
    assert Lora.elsewhere(LoraConfig(bias="all"), linear(bias=False)) is None
    rows = Lora.elsewhere(LoraConfig(trainable_token_indices=[1, 3]), table)
    assert isinstance(rows, TokenRows)
    assert rows.indices == [1, 3]
    assert Lora.elsewhere(LoraConfig(trainable_token_indices={"other": [1]}), table) is None
    named = Lora.elsewhere(LoraConfig(trainable_token_indices={"embed_tokens": [2]}), table)
    assert named.indices == [2]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "options", "expected"),
    [
        (linear(), {}, {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2)}),
        (linear(), {"use_dora": True}, {"lora_magnitude_vector": (4,)}),
        (linear(), {"lora_bias": True}, {"lora_B.bias": (4,)}),
        (linear(), {"bias": "all"}, {"base_layer.bias": (4,)}),
        (linear(bias=False), {"bias": "all"}, {"lora_A.weight": (2, 6)}),
        (
            make_view(nn.Embedding(7, 5)),
            {},
            {"lora_embedding_A": (2, 7), "lora_embedding_B": (5, 2)},
        ),
        (
            make_view(nn.Conv2d(3, 4, (2, 5))),
            {"use_dora": True},
            {
                "lora_A.weight": (2, 3, 2, 5),
                "lora_B.weight": (4, 2, 1, 1),
                "lora_magnitude_vector": (1, 4, 1, 1),
            },
        ),
        (
            make_view(nn.Conv1d(3, 4, 2)),
            {},
            {"lora_A.weight": (2, 3, 2), "lora_B.weight": (4, 2, 1)},
        ),
    ],
)
def test_names_and_shapes_on_disk_are_those_of_peft(view, options, expected):
    adapter = Lora(LoraConfig(r=2, **options), view)
    saved = {name: tuple(tensor.shape) for name, tensor in adapter.to_disk().items()}
    assert saved.items() >= expected.items()
    other = Lora(LoraConfig(r=2, **options), view)
    values = {name: torch.randn(shape) for name, shape in saved.items()}
    other.from_disk(values)
    assert all(torch.equal(other.to_disk()[name], values[name]) for name in values)


@pytest.mark.parametrize("start", ["mica", "orthogonal", "eva"])
def test_a_start_of_peft_that_leaves_a_plain_lora_can_be_loaded(start):
    config = PeftConfig.from_dict({"peft_type": "LORA", "init_lora_weights": start})
    config.require_supported()
    assert config.to_dict()["init_lora_weights"] == start


def test_a_config_of_evas_matters_at_the_start_alone():
    raw = {"peft_type": "LORA", "init_lora_weights": "eva", "eva_config": {"rho": 2.0}}
    PeftConfig.from_dict(raw).require_supported()


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga"])
def test_a_start_of_peft_that_changes_the_base_is_refused(start):
    config = PeftConfig.from_dict({"peft_type": "LORA", "init_lora_weights": start})
    assert config.to_dict()["init_lora_weights"] == start
    with pytest.raises(ConfigError, match=f"init_lora_weights='{start}' is not supported"):
        config.require_supported()
