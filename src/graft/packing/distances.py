"""Biases of attention by distance, as T5 has them, on packed rows.

A bias depends on the distance of two tokens alone, so that of a short segment is a corner of a long
one's: the model's own module computes one for the longest segment, and each reads its own of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from graft.packing.layout import Layout

__all__ = ["counters_of", "counting_by_segment", "is_of_longest"]


def counters_of(layers: Sequence[nn.Module]) -> list[Any]:
    """The modules in `layers` that make such a bias, by transformers' name for what makes it."""
    return [m for layer in layers for m in layer.modules() if hasattr(m, "compute_bias")]


@contextmanager
def counting_by_segment(counters: Sequence[Any], layout: Layout) -> Iterator[None]:
    """Have each of `counters` make the bias of the longest segment, inside the block."""
    for module in counters:
        module.compute_bias = partial(_of_longest, module.compute_bias, layout)
    try:
        yield
    finally:
        for module in counters:
            del module.compute_bias


def _of_longest(own: Any, layout: Layout, queries: int, keys: int, **others: Any) -> Tensor:
    """[1, H, L, N + L] for the longest segment, and what it sees besides, behind N of a prefix."""
    prefix, longest = layout.longest_prefix, layout.longest
    return own(longest, prefix + longest, **{**others, "past_seen_tokens": prefix})


def is_of_longest(bias: Tensor, layout: Layout) -> bool:
    """Whether `bias` [1, H, L, N + L] is such a one."""
    return bias.shape[-2:] == (layout.longest, layout.longest_prefix + layout.longest)
