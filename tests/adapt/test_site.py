"""One target layer with its adapters: hooks, row groups, merging."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from torch import nn

from graft.adapt.layers import view_of
from graft.adapt.routing import Router, RowGroup
from graft.adapt.site import Site
from graft.errors import MergeError
from graft.methods import IA3, BitFit, BitFitConfig, IA3Config, LoraConfig
from graft.methods.lora import Lora

NAMES = ("low", "input", "output", "bias")


@pytest.fixture
def site() -> Site:
    """A linear layer with an adapter of each kind."""
    view = view_of(nn.Linear(5, 4, dtype=torch.float64), "layer")
    site = Site(view, Router())
    adapters = {
        "low": Lora(LoraConfig(r=2, init_lora_weights=False), view),
        "input": IA3(IA3Config(feedforward_modules=["layer"], init_ia3_weights=False), view),
        "output": IA3(IA3Config(feedforward_modules=[], init_ia3_weights=False), view),
        "bias": BitFit(BitFitConfig(new_biases=True), view),
    }
    nn.init.normal_(adapters["bias"].beft_bias)
    for name, adapter in adapters.items():
        site.add(name, view, adapter)
    return site


def groups(*sizes_and_names) -> list[RowGroup]:
    out, start = [], 0
    for size, names in sizes_and_names:
        out.append(RowGroup(slice(start, start + size), names))
        start += size
    return out


def run(site: Site, x: torch.Tensor, *sizes_and_names) -> torch.Tensor:
    with site.router.use(groups(*sizes_and_names)):
        return site.layer.module(x)


def test_without_routing_the_layer_is_its_own(site):
    x = torch.randn(3, 5, dtype=torch.float64)
    plain = nn.functional.linear(x, site.layer.weight, site.layer.bias)
    assert torch.equal(site.layer.module(x), plain)
    assert torch.equal(run(site, x, (3, ())), plain)
    assert torch.equal(run(site, x, (3, ("elsewhere",))), plain)


@pytest.mark.parametrize(
    "mixture",
    [
        [(1, ("low",)), (2, ("input",)), (1, ())],
        [(2, ()), (2, ("output", "bias"))],
        [(1, ("low", "input", "output", "bias")), (3, ("bias", "low"))],
    ],
)
@pytest.mark.parametrize("factor", [1, 3])  # rows of the layer per row of the batch
def test_a_mixed_batch_equals_each_row_alone(site, mixture, factor):
    x = torch.randn(4 * factor, 6, 5, dtype=torch.float64)
    mixed = run(site, x, *mixture)
    start = 0
    for size, names in mixture:
        rows = slice(start * factor, (start + size) * factor)
        alone = run(site, x[rows], (size, names))
        torch.testing.assert_close(mixed[rows], alone, rtol=0, atol=1e-12)
        start += size


def test_merged_equals_adapted_and_comes_out_exactly(site):
    x = torch.randn(3, 5, dtype=torch.float64)
    weight, bias = site.layer.module.weight, site.layer.module.bias
    adapted = run(site, x, (3, NAMES))
    for count in range(1, len(NAMES) + 1):
        site.merge(NAMES[count - 1])
        assert site.merged == list(NAMES[:count])
    torch.testing.assert_close(run(site, x, (3, NAMES)), adapted, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(site, x, (3, ())), adapted, rtol=0, atol=1e-12)
    site.unmerge()
    assert site.merged == []
    assert site.layer.module.weight is weight
    assert site.layer.module.bias is bias
    torch.testing.assert_close(run(site, x, (3, NAMES)), adapted, rtol=0, atol=0)


def test_a_merged_adapter_does_not_act_twice(site):
    x = torch.randn(3, 5, dtype=torch.float64)
    both = run(site, x, (3, ("low", "bias")))
    site.merge("low")
    torch.testing.assert_close(run(site, x, (3, ("low", "bias"))), both, rtol=0, atol=1e-12)


def test_detaching_leaves_a_plain_layer(site):
    x = torch.randn(3, 5, dtype=torch.float64)
    site.detach()
    assert not site.layer.module._forward_hooks
    assert not site.layer.module._forward_pre_hooks
    plain = nn.functional.linear(x, site.layer.weight, site.layer.bias)
    assert torch.equal(run(site, x, (3, NAMES)), plain)


def test_an_error_inside_the_layer_does_not_leak_into_the_next_call(site):
    with pytest.raises(RuntimeError):
        run(site, torch.randn(3, 9, dtype=torch.float64), (3, ("low",)))
    x = torch.randn(3, 5, dtype=torch.float64)
    plain = nn.functional.linear(x, site.layer.weight, site.layer.bias)
    assert torch.equal(run(site, x, (3, ())), plain)


def test_who_gives_a_layer_a_bias_that_it_has_not():
    view = view_of(nn.Linear(5, 4, bias=False), "layer")
    site = Site(view, Router())
    site.add("low", view, Lora(LoraConfig(), view))
    site.add("bias", view, BitFit(BitFitConfig(), view))
    assert site.adds_bias("bias")
    assert not site.adds_bias("low")
    assert not site.adds_bias("elsewhere")
    with_bias = view_of(nn.Linear(5, 4), "layer")
    other = Site(with_bias, Router())
    other.add("bias", with_bias, BitFit(BitFitConfig(), with_bias))
    assert not other.adds_bias("bias")


@pytest.mark.parametrize("active", ["input", "output", "bias"])
def test_what_acts_on_a_merged_layer_does_what_it_did(site, active):
    x = torch.randn(3, 5, dtype=torch.float64)
    both = run(site, x, (3, ("low", active)))
    site.merge("low")
    torch.testing.assert_close(run(site, x, (3, ("low", active))), both, rtol=0, atol=1e-12)
    mixed = run(site, x, (1, (active,)), (2, ()))
    torch.testing.assert_close(mixed[:1], both[:1], rtol=0, atol=1e-12)


def test_the_input_may_come_by_name(site):
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = run(site, x, (3, NAMES))
    with site.router.use(groups((3, NAMES))):
        torch.testing.assert_close(site.layer.module(input=x), expected, rtol=0, atol=0)


def test_what_cannot_be_merged_goes_on_acting(site, monkeypatch):
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = run(site, x, (3, ("low",)))

    def refuse(*values):
        raise MergeError("quantised")

    monkeypatch.setattr(site.layer, "write", refuse)
    with pytest.raises(MergeError):
        site.merge("low")
    assert site.merged == []
    assert torch.equal(run(site, x, (3, ("low",))), expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_may_be_kept_is_made_once(site, name, monkeypatch):
    x = torch.randn(3, 5, dtype=torch.float64)
    made, own = [], type(site.adapters[name]).affine
    monkeypatch.setattr(
        type(site.adapters[name]), "affine", lambda *args: made.append(1) or own(*args)
    )
    with torch.no_grad():
        expected = run(site, x, (3, (name,)))
        for _ in range(2):  # a second block makes it anew
            made.clear()
            with site.router.keeping():
                outs = [run(site, x, (3, (name,))) for _ in range(3)]
            assert len(made) == 1
            assert all(torch.equal(out, expected) for out in outs)


@pytest.mark.parametrize("name", ["low", "input", "output", "bias"])
def test_a_call_that_is_broken_off_keeps_nothing(site, name):
    class Done(Exception):
        pass

    def stop(module, args):
        raise Done

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True).square()
    alive = weakref.ref(x)
    handle = site.layer.module.register_forward_pre_hook(stop)  # as checkpointing does, once ...
    with site.router.use(groups((3, (name,)))), contextlib.suppress(Done):
        site.layer.module(x)  # ... it has recomputed what it needs
    handle.remove()
    del x
    gc.collect()
    assert alive() is None
