"""Attention in which the segments of a packed batch do not see each other.

A model's own code calls it, through transformers' `AttentionInterface`; the layout of the batch
reaches it among the keyword arguments of the forward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from graft.errors import GraftError
from graft.packing.distances import bias_of
from graft.packing.layout import Layout

__all__ = ["Unpackable", "attending_by_segment", "attention_configs"]

_NAME = "graft_packed"


class Unpackable(GraftError):
    """A model, or a layer of it, that cannot run on packed rows; batches are padded then."""


def attention_configs(model: nn.Module) -> list[Any]:
    """The configs by which the modules of `model` choose their attention, each once."""
    owners: list[Any] = list(model.modules())
    return list({id(m.config): m.config for m in owners if hasattr(m, "config")}.values())


@contextmanager
def attending_by_segment(configs: Sequence[Any]) -> Iterator[None]:
    """Let attention that `configs` choose be the one of this module, inside the block."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _no_mask)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H * G, S, K], key and value [1, H, S, K] -> [1, S, H * G, K].

    Dropout of attention is left out: the base model is frozen, and as it is.
    """
    if packed is None or attention_mask is not None:
        raise _strange(module, "a mask of its own, or an attention beside its layers'")
    if s_aux is not None:
        raise _strange(module, "attention sinks")
    if not packed.causal and sliding_window is not None:
        raise _strange(module, "a window without a direction")
    # Behind an encoder, what looks both ways looks there. No model has biases for that.
    source = None if getattr(module, "is_causal", True) else packed.source
    heads = key.shape[1]
    scaling = key.shape[-1] ** -0.5 if scaling is None else scaling
    queries = query[0].unflatten(0, (heads, -1)).split(packed.lengths, dim=2)  # each [H, G, T, K]
    lengths = (packed if source is None else source).lengths
    keys, values = key[0].split(lengths, dim=1), value[0].split(lengths, dim=1)
    out = []
    for index, q in enumerate(queries):
        mask = bias = None
        if source is not None:
            k, v = keys[index], values[index]
        else:
            k, v = _seen(module, packed, index, keys, values)
            if packed.causal:
                shape = q.shape[2], *packed.seen_before(packed.segments[index])
                mask = _mask(*shape, sliding_window, q.dtype, q.device)
            if position_bias is not None:
                bias = bias_of(index, position_bias, packed)
                if bias is None:
                    raise _strange(module, "position_bias of its own")
        out.append(_Segment.apply(q.flatten(1, 2), k, v, mask, bias, scaling, softcap).view_as(q))
    return torch.cat(out, dim=2).flatten(0, 1).transpose(0, 1)[None], None


def _strange(module: nn.Module, what: str) -> Unpackable:
    return Unpackable(f"{type(module).__name__} has {what}.")


def _seen(
    module: Any, packed: Layout, index: int, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Keys and values [H, N + P + T, K] that a segment sees: prefix, virtual tokens, itself."""
    segment = packed.segments[index]
    seen = [(keys[index], values[index])]
    if segment.prompt is not None:
        seen.insert(0, (keys[segment.prompt], values[segment.prompt]))
    if segment.prefix is not None:
        own = segment.prefix[module.layer_idx].to(keys[index].dtype)  # [2, H, N, K]
        seen.insert(0, (own[0], own[1]))
    if len(seen) == 1:
        return seen[0]
    k, v = zip(*seen, strict=True)
    return torch.cat(k, 1), torch.cat(v, 1)


@functools.lru_cache(maxsize=512)
def _mask(
    tokens: int,
    before: int,
    always: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """[T, always + before + T]: `always` keys are seen by all, the others by those behind them.

    A window slides over virtual tokens and text, not over a prefix.
    """
    query = torch.arange(before, before + tokens, device=device)[:, None]
    key = torch.arange(before + tokens, device=device)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    out = torch.zeros(tokens, always + before + tokens, dtype=dtype, device=device)
    out[:, always:].masked_fill_(hidden, torch.finfo(dtype).min)
    return out


class _Segment(torch.autograd.Function):
    """softmax(scaling * Q K' + mask) V of one segment, whose probabilities are not kept.

    q is [H, G * T, K] (the G query heads of a key head, one behind the other), k and v [H, S, K],
    the mask [T, S] or None, the bias [H * G, T, S] or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask, bias)
        ctx.settings = scaling, softcap
        probabilities, _ = _probabilities(q, k, mask, bias, scaling, softcap)
        return torch.bmm(probabilities.to(v.dtype), v)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, mask, bias = ctx.saved_tensors
        scaling, softcap = ctx.settings
        probabilities, slope = _probabilities(q, k, mask, bias, scaling, softcap)
        grad_p = torch.bmm(grad, v.transpose(1, 2)).to(probabilities.dtype)
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype)
        grad_s = (grad_s if slope is None else grad_s * slope).to(q.dtype)
        return (
            torch.bmm(grad_s, k).mul_(scaling),
            torch.bmm(grad_s.transpose(1, 2), q).mul_(scaling),
            torch.bmm(probabilities.to(grad.dtype).transpose(1, 2), grad),
            None,
            grad_s.view_as(bias) if ctx.needs_input_grad[4] else None,
            None,
            None,
        )


def _probabilities(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor | None]:
    """[H, G * T, S] in fp32 at least, and the softcap's slope there."""
    scores, slope = torch.bmm(q, k.transpose(1, 2)).mul_(scaling), None
    if softcap is not None:
        capped = torch.tanh(scores / softcap)
        slope = 1 - capped.square()
        scores = capped * softcap
    if bias is not None:
        scores.view(bias.shape).add_(bias)
    if mask is not None:
        scores.unflatten(1, (-1, len(mask))).add_(mask)
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.softmax(scores, -1, dtype=wide), slope
