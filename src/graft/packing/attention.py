"""Attention in which the segments of a packed batch do not see each other.

A model's own code calls it, through transformers' `AttentionInterface`; the layout of the batch
reaches it among the keyword arguments of the forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from graft.errors import GraftError
from graft.packing.distances import is_of_longest
from graft.packing.layout import Layout
from graft.packing.segments import Rules, attend
from graft.packing.varlen import ROUNDING, attend_at_once, disagreement

__all__ = [
    "Unpackable",
    "attending_by_segment",
    "attention_configs",
    "refuse_convolutions",
    "window_mark",
]

_NAME = "graft_packed"


class Unpackable(GraftError):
    """A model, or a layer of it, that cannot run on packed rows; batches are padded then."""


def attention_configs(model: nn.Module) -> list[Any]:
    """The configs by which the modules of `model` choose their attention, each once."""
    owners: list[Any] = list(model.modules())
    return list({id(m.config): m.config for m in owners if hasattr(m, "config")}.values())


def refuse_convolutions(module: nn.Module) -> None:
    """Raise Unpackable where `module` has what mixes neighbours, whoever's they are."""
    if any(isinstance(m, nn.Conv1d) and max(m.kernel_size) > 1 for m in module.modules()):
        raise Unpackable(f"{type(module).__name__} has convolutions over tokens.")


@contextmanager
def attending_by_segment(configs: Sequence[Any]) -> Iterator[None]:
    """Let attention that `configs` choose be the one of this module, inside the block."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


def window_mark(size: int) -> Tensor:
    """What stands for a mask that shows the last `size` keys, or a chunk of so many."""
    return torch.empty(size, 0)


def _mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    return None if local_size is None else window_mark(local_size)


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
    if attention_mask is not None and attention_mask.shape[1:] == (0,):
        if len(attention_mask) != sliding_window:
            raise _strange(module, "a window that its mask alone tells of")
        attention_mask = None
    if packed is None or attention_mask is not None:
        raise _strange(module, "a mask of its own, or an attention beside its layers'")
    if s_aux is not None:
        raise _strange(module, "attention sinks")
    if not packed.causal and sliding_window is not None:
        raise _strange(module, "a window without a direction")
    # Behind an encoder, what looks both ways looks there. No model has a bias for that.
    source = None if getattr(module, "is_causal", True) else packed.source
    if source is not None:
        position_bias, readings, prefixes = None, packed.source_readings, []
    else:
        readings = packed.own_readings
        prefixes = [layers[module.layer_idx].to(key.dtype) for layers in packed.prefixes]
    if position_bias is not None and not is_of_longest(position_bias, packed):
        raise _strange(module, "a position_bias of its own")
    rules = Rules(
        scaling=key.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=packed.causal and source is None,
        window=sliding_window,
        softcap=softcap,
        masks=packed.masks,
    )
    if _has_kernel(key.device):
        if position_bias is not None or softcap is not None:
            raise _strange(module, "scores that a GPU's kernel does not compute")
        _try_kernel(module, query, key, rules)
        if packed.longest <= (sliding_window or 0):
            rules = replace(rules, window=None)
        if rules.window is None or not prefixes:
            spans = packed.spans(source is not None, key.device)
            return attend_at_once(query[0], key[0], value[0], prefixes, spans, rules)[None], None
    bias = None if position_bias is None else position_bias[0]
    return attend(query[0], key[0], value[0], bias, prefixes, readings, rules)[None], None


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda"


def _try_kernel(module: nn.Module, query: Tensor, key: Tensor, rules: Rules) -> None:
    heads = query.shape[1], key.shape[1]
    slides = rules.window is not None and rules.causal
    off = disagreement(heads, key.shape[3], key.dtype, key.device, rules.causal, slides)
    if not off <= ROUNDING:
        raise _strange(module, f"attention that a GPU's kernel computes {off:.1%} otherwise")


def _strange(module: nn.Module, what: str) -> Unpackable:
    return Unpackable(f"{type(module).__name__} has {what}.")
