from __future__ import annotations

import pytest
import torch
from torch import nn

from graft.errors import ConfigError
from graft.methods.affine import merged
from graft.methods.token_rows import TokenRows

from .conftest import linear, make_view

IDS = torch.tensor([[0, 3, 5], [3, 1, 6]])


def table():
    return make_view(nn.Embedding(7, 4), "embed_tokens")


def test_rows_start_as_they_are_and_replace_the_bases():
    view = table()
    rows = TokenRows([3, 5], view)
    assert torch.equal(rows.trainable_tokens_delta, view.module.weight[[3, 5]])
    rows.trainable_tokens_delta.data.normal_()
    expected = view.module.weight.detach().clone()
    expected[[3, 5]] = rows.trainable_tokens_delta.detach()
    affine = rows.affine(view)
    found = affine.adapt_output(view, IDS, view.module(IDS))
    torch.testing.assert_close(found, expected[IDS], rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(view, [affine])[0], expected.T, rtol=0, atol=1e-6)


def test_only_the_rows_learn():
    view = table()
    rows = TokenRows([3, 5], view)
    rows.affine(view).adapt_output(view, IDS, view.module(IDS).detach()).sum().backward()
    assert rows.trainable_tokens_delta.grad.tolist() == [[2.0] * 4, [1.0] * 4]  # 3 twice, 5 once


def test_a_tied_head_has_the_same_rows():
    view, head = table(), linear(4, 7, bias=False, path="lm_head")
    head.module.weight = view.module.weight
    rows = TokenRows([3, 5], view)
    rows.trainable_tokens_delta.data.normal_()
    twin = rows.for_tied(head)
    expected = view.module.weight.detach().clone()
    expected[[3, 5]] = rows.trainable_tokens_delta.detach()
    x = torch.randn(2, 4)
    found = twin.affine(head).adapt_output(head, x, head.module(x))
    torch.testing.assert_close(found, x @ expected.T, rtol=0, atol=1e-5)
    assert list(twin.parameters()) == []  # it is one parameter, counted and saved once
    assert twin.to_disk() == {}
    assert twin.trainable_tokens_delta is rows.trainable_tokens_delta


@pytest.mark.parametrize(
    ("indices", "said"),
    [([2, 7], r"has rows 0 to 6, not \[7\]"), ([-1], "not"), ([2, 2], "an index twice")],
)
def test_indices_that_are_none_are_refused(indices, said):
    with pytest.raises(ConfigError, match=said):
        TokenRows(indices, table())


def test_the_name_on_disk_is_pefts():
    rows = TokenRows([3, 5], table())
    assert rows.to_disk().keys() == {"token_adapter.trainable_tokens_delta"}
