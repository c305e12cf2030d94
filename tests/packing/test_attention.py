"""Attention by segment equals softmax attention written out, mask and all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from graft.adapt.routing import RowGroup
from graft.packing import segments
from graft.packing.attention import Unpackable, attending_by_segment, attention_configs
from graft.packing.attention import _attention as packed_attention
from graft.packing.layout import Layout

HEADS, REPEATS, SIZE = 2, 3, 4
GROUPS = [RowGroup(slice(0, 2), ("a",)), RowGroup(slice(2, 4), ("b",))]
LENGTHS = [3, 5, 1, 4]


def inputs(length: int) -> list[Tensor]:
    heads = (HEADS * REPEATS, HEADS, HEADS)
    shapes = [(1, count, length, SIZE) for count in heads]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def written_out(layout: Layout, query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
    """One query at a time, over the keys that it may see."""
    window, softcap = settings.get("sliding_window"), settings.get("softcap")
    out = torch.zeros(1, layout.length, HEADS * REPEATS, SIZE, dtype=torch.float64)
    for segment in layout.segments:
        before = [] if segment.prompt is None else [layout.segments[segment.prompt].tokens]
        places = [i for part in [*before, segment.tokens] for i in range(part.start, part.stop)]
        own = len(places) - segment.length
        for head in range(HEADS * REPEATS):
            group = head // REPEATS
            keys, values = key[0, group, places], value[0, group, places]
            for t in range(segment.length):
                last = own + t
                first = 0 if window is None else max(0, last - window + 1)
                k, v = keys[first : last + 1], values[first : last + 1]
                if segment.prefix is not None:
                    prefix = layout.prefixes[segment.prefix][0]
                    k = torch.cat([prefix[0, group], k])
                    v = torch.cat([prefix[1, group], v])
                scores = k @ query[0, head, segment.tokens.start + t] * 0.3
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[0, segment.tokens.start + t, head] = scores.softmax(0) @ v
    return out


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 2}, {"softcap": 0.5}])
@pytest.mark.parametrize("prompts", [[0, 0], [2, 0], [1, 3]])
@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("block", [2, 128])
def test_it_equals_attention_written_out(settings, prompts, prefixed, block, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK", block)
    shape = (1, 2, HEADS, 2, SIZE)
    prefix = torch.randn(shape, dtype=torch.float64, requires_grad=True) if prefixed else None
    layout = Layout(LENGTHS, GROUPS, prompts, [prefix, None])
    given = inputs(layout.length)
    module = SimpleNamespace(layer_idx=0)
    got, _ = packed_attention(module, *given, None, packed=layout, scaling=0.3, **settings)
    wanted = written_out(layout, *given, **settings)
    assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)
    score = torch.randn_like(wanted)
    leaves = [*given, prefix] if prefixed else given
    for own, expected in zip(
        torch.autograd.grad((got * score).sum(), leaves),
        torch.autograd.grad((wanted * score).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(own, expected, rtol=1e-9, atol=1e-11)


def bias_written_out(bias: Tensor, lengths: list[int], prefixes: list[int]) -> list[Tensor]:
    """Of each row [H, T, N + T]: the corner behind the longest prefix that its own leaves."""
    most = max(prefixes)
    pairs = zip(lengths, prefixes, strict=True)
    return [bias[0, :, :length, most - own : most + length] for length, own in pairs]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [2, 128])
def test_a_bias_of_distances_and_its_gradient(causal, block, monkeypatch):
    monkeypatch.setattr(segments, "_BLOCK", block)
    prefix = torch.randn(1, 2, HEADS, 2, SIZE, dtype=torch.float64)
    layout = Layout(LENGTHS, GROUPS, [0, 0], [prefix, None], causal)
    given = inputs(layout.length)
    shape = (1, HEADS * REPEATS, max(LENGTHS), 2 + max(LENGTHS))
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    module = SimpleNamespace(layer_idx=0, is_causal=causal)
    got, _ = packed_attention(module, *given, None, packed=layout, scaling=0.3, position_bias=bias)
    parts = []
    own_biases = bias_written_out(bias, LENGTHS, [2, 2, 0, 0])
    for segment, own in zip(layout.segments, own_biases, strict=True):
        query, key, value = (t[0, :, segment.tokens] for t in given)
        if segment.prefix is not None:
            key, value = (torch.cat([prefix[0, i], t], 1) for i, t in enumerate((key, value)))
        key, value = (t.repeat_interleave(REPEATS, 0) for t in (key, value))
        mask = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
        if not causal:
            mask[:] = True
        mask = torch.nn.functional.pad(mask, (key.shape[1] - segment.length, 0), value=True)
        scores = (query @ key.mT * 0.3 + own).masked_fill(~mask, -torch.inf)
        parts.append(scores.softmax(-1) @ value)
    wanted = torch.cat(parts, 1).transpose(0, 1)[None]
    assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)
    score = torch.randn_like(wanted)
    for own, expected in zip(
        torch.autograd.grad((got * score).sum(), [*given, bias]),
        torch.autograd.grad((wanted * score).sum(), [*given, bias]),
        strict=True,
    ):
        assert torch.allclose(own, expected, rtol=1e-9, atol=1e-11)


def test_cross_attention_reads_each_rows_own_row_of_the_encoder():
    source = Layout([4, 2, 6, 3], GROUPS, [0, 0], [None, None], causal=False)
    layout = Layout(LENGTHS, GROUPS, [0, 0], [None, None], causal=True, source=source)
    query, *_ = inputs(layout.length)
    _, key, value = inputs(source.length)
    module = SimpleNamespace(layer_idx=0, is_causal=False)
    nothing = torch.zeros(1)  # what a model hands on as a bias there is none
    got, _ = packed_attention(module, query, key, value, None, packed=layout, position_bias=nothing)
    for own, its in zip(layout.segments, source.segments, strict=True):
        q = query[:, :, own.tokens]
        k, v = (t[:, :, its.tokens].repeat_interleave(REPEATS, 1) for t in (key, value))
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert torch.allclose(got[:, own.tokens], wanted.transpose(1, 2))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"s_aux": torch.zeros(1)}, "attention sinks"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"packed": None}, "an attention beside its layers'"),
        ({"mask": torch.zeros(1)}, "a mask of its own"),
    ],
)
def test_what_it_does_not_know_is_refused(given, what):
    layout = Layout([2], [RowGroup(slice(0, 1), ())], [0], [None])
    mask = given.pop("mask", None)
    arguments = {"packed": layout, **given}
    with pytest.raises(Unpackable, match=f"Linear has .*{what}"):
        packed_attention(nn.Linear(1, 1), *inputs(2), mask, **arguments)


def test_the_models_own_attention_comes_back():
    config = SimpleNamespace(_attn_implementation="sdpa")
    model = nn.Linear(1, 1)
    model.config = config
    with attending_by_segment(attention_configs(model)):
        assert config._attn_implementation == "graft_packed"
    assert config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), attending_by_segment(attention_configs(model)):
        _ = 1 / 0
    assert config._attn_implementation == "sdpa"
