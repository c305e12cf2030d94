"""Modules that adapters replace whole, such as heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graft.adapt.routed import SavedModule, trainable_copy
from graft.adapt.routing import Router, RowGroup
from graft.errors import ConfigError


class Head(nn.Module):
    """Takes more than one argument and gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, factor: float, bias: Tensor | None = None) -> tuple[Tensor, float]:
        y = self.layer(x) * factor
        return (y if bias is None else y + bias), factor


@pytest.fixture
def routed() -> tuple[Head, SavedModule, Router]:
    """A head that the adapters "one" and "two" replace by copies of their own."""
    head, router = Head(), Router()
    saved = SavedModule(head, "head", router)
    for name in ("one", "two"):
        saved.copies[name] = trainable_copy(head)
        nn.init.normal_(saved.copies[name].layer.weight)
    return head, saved, router


def groups(*sizes_and_names) -> list[RowGroup]:
    out, start = [], 0
    for size, names in sizes_and_names:
        out.append(RowGroup(slice(start, start + size), names))
        start += size
    return out


def test_rows_reach_the_copy_of_their_adapter(routed):
    head, saved, router = routed
    x, bias = torch.randn(6, 3), torch.randn(6, 2)
    with router.use(groups((2, ("two",)), (1, ()), (3, ("other", "one")))):
        y, factor = head(x, 2.0, bias=bias)
    assert factor == 2.0
    expected = [
        saved.copies["two"].layer(x[:2]) * 2 + bias[:2],
        head.layer(x[2:3]) * 2 + bias[2:3],
        saved.copies["one"].layer(x[3:]) * 2 + bias[3:],
    ]
    torch.testing.assert_close(y, torch.cat(expected), rtol=0, atol=1e-6)
    with router.use(groups((2, ("two",)), (4, ()))):
        named, _ = head(x=x, factor=2.0)
    torch.testing.assert_close(named[:2], saved.copies["two"].layer(x[:2]) * 2, rtol=0, atol=1e-6)


def test_of_several_active_adapters_the_last_ones_copy_acts(routed):
    head, saved, router = routed
    x = torch.randn(2, 3)
    with router.use(groups((2, ("one", "two")))):
        y, _ = head(x, 1.0)
    torch.testing.assert_close(y, saved.copies["two"].layer(x))


def test_outside_of_a_forward_the_module_is_its_own(routed):
    head, _, _ = routed
    x = torch.randn(2, 3)
    torch.testing.assert_close(head(x, 1.0)[0], head.layer(x))


def test_a_copy_learns_in_full_precision_and_answers_in_the_bases():
    head, router = Head().bfloat16().requires_grad_(False), Router()
    saved = SavedModule(head, "head", router)
    saved.copies["one"] = copy = trainable_copy(head)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in copy.parameters())
    linear = nn.Linear(3, 2).bfloat16()
    plain = SavedModule(linear, "plain", router)
    plain.copies["one"] = trainable_copy(linear)
    with router.use(groups((2, ("one",)))):
        assert linear(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16


def test_a_copy_is_not_routed_and_detaching_gives_the_forward_back(routed):
    head, saved, router = routed
    copy = trainable_copy(head)
    assert "forward" not in vars(copy)
    assert "forward" in vars(head)
    saved.detach()
    assert "forward" not in vars(head)
    x = torch.randn(2, 3)
    with router.use(groups((2, ("one",)))):
        torch.testing.assert_close(head(x, 1.0)[0], head.layer(x))
    again = trainable_copy(head)
    assert torch.equal(again.layer.weight, head.layer.weight)


def test_a_module_without_parameters_is_not_copied():
    with pytest.raises(ConfigError, match="a Dropout has nothing to train"):
        trainable_copy(nn.Dropout())
