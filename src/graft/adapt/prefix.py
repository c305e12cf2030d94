"""A prefix as a key-value cache, the form in which transformers takes one.

Generation gets a cache that grows. A forward of ours gets one that only reads: it can be replayed
when gradient checkpointing computes a layer again, and it keeps nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["allow_cache_under_checkpointing", "growing_cache", "reading_cache"]


class _ReadingCache(DynamicCache):
    """Prepends what it holds and stores nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx >= len(self.layers):
            return key_states, value_states
        layer: Any = self.layers[layer_idx]
        keys = torch.cat([layer.keys, key_states], dim=-2)
        return keys, torch.cat([layer.values, value_states], dim=-2)


class _NeverUpdated(dict):
    """`is_updated` of a cross-attention cache that is not used."""

    def __setitem__(self, key: int, value: bool) -> None:
        return None


def _filled(kind: type[DynamicCache], key_values: Tensor) -> DynamicCache:
    return kind([(layer[0], layer[1]) for layer in key_values])


def reading_cache(key_values: Tensor, encoder_decoder: bool) -> DynamicCache | EncoderDecoderCache:
    """A cache for one forward from a prefix [L, 2, B, H, N, K]."""
    own = _filled(_ReadingCache, key_values)
    if not encoder_decoder:
        return own
    cache = EncoderDecoderCache(own, _ReadingCache())
    cache.is_updated = _NeverUpdated()
    return cache


def growing_cache(key_values: Tensor, encoder_decoder: bool) -> DynamicCache | EncoderDecoderCache:
    """A cache for generation from a prefix [L, 2, B, H, N, K]."""
    own = _filled(DynamicCache, key_values)
    return EncoderDecoderCache(own, DynamicCache()) if encoder_decoder else own


def allow_cache_under_checkpointing(model: nn.Module) -> None:
    """Let checkpointed layers keep the cache they are given.

    transformers takes it away, as a layer that writes would write twice; ours is read only. A
    private name of transformers 5: `tests/adapt/test_prefix.py` holds it.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True
