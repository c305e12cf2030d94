"""A prefix as a key-value cache, the form in which transformers takes one.

Generation gets a cache that grows. A forward of ours gets one that only reads: it can be replayed
when gradient checkpointing computes a layer again, and it keeps nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache

__all__ = ["growing_cache", "is_reading", "reading_cache"]


class _ReadingCache(DynamicCache):
    """Prepends what it holds and stores nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx >= len(self.layers):  # of cross attention
            return key_states, value_states
        layer: Any = self.layers[layer_idx]
        keys = torch.cat([layer.keys, key_states], dim=-2)
        return keys, torch.cat([layer.values, value_states], dim=-2)


class _NeverUpdated(dict):
    """`is_updated` of a cross-attention cache that is not used."""

    def __setitem__(self, key: int, value: bool) -> None:
        return None


def reading_cache(key_values: Tensor, encoder_decoder: bool) -> DynamicCache | EncoderDecoderCache:
    """A cache for one forward from a prefix [L, 2, B, H, N, K]."""
    own = _ReadingCache([(layer[0], layer[1]) for layer in key_values])
    if not encoder_decoder:
        return own
    cache = EncoderDecoderCache(own, _ReadingCache())
    cache.is_updated = _NeverUpdated()
    return cache


def growing_cache(key_values: Tensor, encoder_decoder: bool, empty: Cache | None = None) -> Cache:
    """A cache to go on with from a prefix [L, 2, B, H, N, K]: a new one, or `empty` filled."""
    if empty is None:
        empty = DynamicCache()
        empty = EncoderDecoderCache(empty, DynamicCache()) if encoder_decoder else empty
    own = empty.self_attention_cache if isinstance(empty, EncoderDecoderCache) else empty
    for index, (keys, values) in enumerate(key_values):
        own.update(keys, values, index)
    return empty


def is_reading(cache: Any) -> bool:
    """Whether `cache` is one of `reading_cache`, which holds nothing that a caller could use."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    return isinstance(own, _ReadingCache)
