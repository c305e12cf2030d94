"""The fused update equals the formula as autograd sees it, which is its reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graft.adapt.fused import Update, low_rank_update
from graft.adapt.layers import view_of
from graft.adapt.routing import Router, RowGroup
from graft.adapt.site import Site
from graft.methods import LoraConfig
from graft.methods.lora import Lora

SIZES = (2, 1, 3)


@pytest.fixture(params=[nn.Linear, Conv1D])
def site(request: pytest.FixtureRequest) -> Site:
    layer = nn.Linear(5, 4) if request.param is nn.Linear else Conv1D(4, 5)
    layer = layer.double().requires_grad_(False)
    view = view_of(layer, "layer")
    site = Site(view, Router())
    for name, rank in (("one", 2), ("two", 3)):
        config = LoraConfig(r=rank, init_lora_weights=False, lora_alpha=rank + 1)
        site.add(name, view, Lora(config, view))
    return site


def groups() -> list[RowGroup]:
    ends = torch.tensor(SIZES).cumsum(0).tolist()
    names = (("one",), (), ("two",))
    starts = [0, *ends[:-1]]
    return [RowGroup(slice(a, b), n) for a, b, n in zip(starts, ends, names, strict=True)]


def results(site: Site, x: torch.Tensor, packed: bool) -> list[torch.Tensor]:
    parameters = [p for adapter in site.adapters.values() for p in adapter.parameters()]
    with site.router.use(groups(), packed=packed):
        y = site.layer.module(x)
    score = (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum()
    return [y, *torch.autograd.grad(score, [x, *parameters])]


@pytest.mark.parametrize("packed", [False, True])
def test_it_equals_the_formula(site, packed, monkeypatch):
    x = torch.randn(1, 6, 5) if packed else torch.randn(6, 3, 5)
    x = x.double().requires_grad_()
    fused = results(site, x, packed)
    assert "LowRank" in type(fused[0].grad_fn).__name__
    monkeypatch.setattr(Site, "fuses", False)
    plain = results(site, x, packed)
    assert "LowRank" not in type(plain[0].grad_fn).__name__
    for own, wanted in zip(fused, plain, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [3, 40])  # few rows, and many
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_a_gradient_it_equals_the_formula(site, tokens, dtype, monkeypatch):
    """In half precision the adapter is in fp32, and only the sum is rounded."""
    site.layer.module.to(dtype)
    for adapter in site.adapters.values():
        adapter.to(torch.promote_types(dtype, torch.float32))
    x = torch.randn(6, tokens, 5, dtype=dtype)

    def run() -> torch.Tensor:
        with torch.no_grad(), site.router.use(groups()):
            return site.layer.module(x)

    calls = []
    monkeypatch.setattr(
        "graft.adapt.site.low_rank_update",
        lambda *args: calls.append(1) or low_rank_update(*args),
    )
    fused = run()
    assert calls
    monkeypatch.setattr(Site, "fuses", False)
    rounding = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"atol": 0.05}
    assert torch.allclose(fused, run(), **rounding)
    assert not torch.allclose(fused, site.layer.module(x), atol=0.05)  # something was added


def test_the_gradients_are_those_of_finite_differences():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    a = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64)

    def layer(x, a, b):
        y = (x @ weight.T).detach()
        torch.manual_seed(3)  # the same inputs are dropped each time
        return low_rank_update(x, y, weight, [Update(), Update(a, b, 0.7, dropout=0.4)], [1, 2])

    assert torch.autograd.gradcheck(layer, (x, a, b))


def test_dropout_scales_what_it_keeps():
    x = torch.ones(400, 50, dtype=torch.float64)
    a, b = torch.eye(50, dtype=torch.float64), torch.eye(50, dtype=torch.float64)
    y = low_rank_update(
        x, torch.zeros_like(x), torch.zeros_like(b), [Update(a, b, 1.0, 0.25)], [400]
    )
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "obstacle", ["a hook", "a trainable weight", "a trainable bias", "offloading"]
)
def test_a_layer_that_is_not_plain_takes_the_formula(site, obstacle):
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    wanted = results(site, x, False)
    module = site.layer.module
    seen = []
    if obstacle == "a hook":
        module.register_forward_hook(lambda module, args, out: seen.append(out))
    elif obstacle == "a trainable weight":
        module.weight.requires_grad_(True)
    elif obstacle == "a trainable bias":
        module.bias.requires_grad_(True)
    else:
        module.forward = module.forward
    got = results(site, x, False)
    assert "LowRank" not in type(got[0].grad_fn).__name__
    for own, expected in zip(got, wanted, strict=True):
        assert torch.allclose(own, expected, rtol=1e-12, atol=1e-12)


def test_autocast_takes_the_formula(site):
    site.layer.module.float()
    for adapter in site.adapters.values():
        adapter.float()
    x = torch.randn(6, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = results(site, x, False)[0]
    assert y.dtype == torch.bfloat16
    assert "LowRank" not in type(y.grad_fn).__name__
