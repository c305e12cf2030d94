"""The chunked loss equals the cross entropy of all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graft.packing import loss
from graft.packing.loss import chunked_cross_entropy


@pytest.mark.parametrize("size", [1, 3, 18, 100])
def test_it_equals_the_cross_entropy_of_all_logits(size, monkeypatch):
    monkeypatch.setattr(loss, "_BLOCK", 0)  # the fewest rows in a block: 18 are two of them
    hidden = torch.randn(18, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(2, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (18,))
    weights = torch.rand(18, dtype=torch.float64)

    def head(x):
        return torch.tanh(x @ weight.T)

    total, each = chunked_cross_entropy(hidden, labels, weights, head, [weight, unused], size)
    wanted = F.cross_entropy(head(hidden), labels, reduction="none")
    assert torch.allclose(each, wanted)
    assert not each.requires_grad
    assert torch.allclose(total, (wanted * weights).sum())
    got = torch.autograd.grad(3 * total, [hidden, weight, unused])
    expected = torch.autograd.grad(3 * (wanted * weights).sum(), [hidden, weight])
    for own, other in zip(got, expected, strict=False):
        assert torch.allclose(own, other)
    assert not got[2].any()


def test_a_chunk_is_all_that_the_head_sees():
    sizes = []

    def head(x):
        sizes.append(len(x))
        return x

    hidden = torch.randn(10, 4, requires_grad=True)
    chunked_cross_entropy(hidden, torch.zeros(10, dtype=torch.long), torch.ones(10), head, (), 4)
    assert sizes == [4, 4, 2]


def test_without_gradients_none_is_computed():
    hidden = torch.randn(3, 4)
    labels = torch.tensor([0, 1, 2])
    total, each = chunked_cross_entropy(hidden, labels, torch.ones(3), lambda x: x)
    assert torch.allclose(each, F.cross_entropy(hidden, labels, reduction="none"))
    assert not total.requires_grad


def test_a_hopeless_label_has_a_finite_loss():
    hidden = torch.tensor([[300.0, 0.0]], requires_grad=True)
    total, _ = chunked_cross_entropy(hidden, torch.tensor([1]), torch.ones(1), lambda x: x)
    assert total.item() == 300.0
