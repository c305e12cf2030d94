"""Attention of segments by torch's kernel for sequences of different lengths, on a GPU.

What the kernel is handed is made here: which keys each segment sees, in which order, and where one
segment ends. `segments` computes the same on a CPU, in blocks, and is what the kernel has to agree
with before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from graft.packing.segments import Reading, Rules, attend

__all__ = ["ROUNDING", "Spans", "attend_at_once", "disagreement", "why_padded"]

ROUNDING = 0.05  # of a half's results and gradients, as a share of their size
_HALVES = (torch.bfloat16, torch.float16)


def why_padded(kind: str, dtype: torch.dtype) -> str | None:
    """Why rows of a model of `dtype` are not packed on a kind of device; None where they are."""
    if kind == "cpu":
        return None
    if kind != "cuda":
        return f"packing has not been measured on {kind}"
    if dtype not in _HALVES:
        return f"no kernel attends to packed rows in {str(dtype).removeprefix('torch.')}"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return "its kernel needs a GPU of compute capability 8.0"
    return None


@dataclass(frozen=True)
class Spans:
    """Which keys each of N segments sees, as the kernel takes it.

    Attributes:
        places: [M], of the keys of one segment behind those of the other, among the packed keys
            and those of all prefixes behind them; None: each segment sees its own, and all are.
        query_ends: [N + 1], int32: where segments begin and end among the queries.
        key_ends: [N + 1], int32: where they do among the M keys.
        most_queries: Of a segment.
        most_keys: Of a segment.
    """

    places: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(
        cls, readings: Sequence[Reading], keys: int, prefixes: Sequence[int], device: torch.device
    ) -> Spans:
        """What `readings` say.

        Args:
            readings: By segment; their queries are in order, without gaps.
            keys: How many are packed.
            prefixes: Keys in each.
            device: Of the kernel.
        """
        starts = [keys + sum(prefixes[:i]) for i in range(len(prefixes))]
        seen: list[list[range]] = []
        for reading in readings:
            front = reading.prefix
            shown = [] if front is None else [range(starts[front], starts[front] + prefixes[front])]
            seen.append([*shown, *(range(own.start, own.stop) for own in reading.keys)])
        places = [place for ranges in seen for own in ranges for place in own]
        queries = [r.queries.stop - r.queries.start for r in readings]
        counts = [sum(map(len, ranges)) for ranges in seen]
        return cls(
            None if places == list(range(keys)) else torch.tensor(places, device=device),
            _ends(queries, device),
            _ends(counts, device),
            max(queries),
            max(counts),
        )


def _ends(counts: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32)


def attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[Tensor],
    spans: Spans,
    rules: Rules,
) -> Tensor:
    """What `segments.attend` gives, without a bias, a softcap, or a window behind a prefix.

    Args:
        query: [H * G, S, K].
        key: [H, S', K].
        value: [H, S', K].
        prefixes: Keys and values, each [2, H, N, K].
        spans: What segments see.
        rules: How.

    Returns:
        [S, H * G, K].
    """
    shown = [key, value]
    if spans.places is not None:
        # One gather, whose backward is one scatter: a slice's would be as large as all keys.
        fronts = [prefix.unbind() for prefix in prefixes]
        for side, own in enumerate(shown):
            every = torch.cat([own, *(front[side] for front in fronts)], 1)
            shown[side] = every.index_select(1, spans.places)
    # Causality counts from the last key, so that a segment's last query sees all; what the
    # kernel calls left is without the query's own key.
    left = -1 if rules.window is None else rules.window - 1
    return _kernel()(
        query.transpose(0, 1),
        *(own.transpose(0, 1) for own in shown),
        spans.query_ends,
        spans.key_ends,
        spans.most_queries,
        spans.most_keys,
        scale=rules.scaling,
        window_size=(left, 0) if rules.causal else (-1, -1),
        enable_gqa=len(query) != len(key),
    )


def _kernel() -> Callable[..., Tensor]:
    from torch.nn.attention.varlen import varlen_attn  # of newer versions of torch

    return varlen_attn  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=64)
def disagreement(
    heads: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    causal: bool,
    slides: bool,
) -> float:
    """How far the kernel's results and gradients are from those of `segments`, as a share.

    Tried once for layers of this kind, on segments that see virtual tokens and a prefix.

    Args:
        heads: Of queries and of keys.
        size: K.
        dtype: Of all of them.
        device: Where the kernel runs.
        causal: As in `Rules`.
        slides: Whether a window ends inside a segment; no prefix is seen then.
    """
    at = (slice(0, 3), slice(3, 13), slice(13, 20))
    shown = [((at[0],), 0), ((at[0], at[1]), 0), ((at[2],), None)]
    readings = [
        Reading(own, keys, None if slides else front)
        for own, (keys, front) in zip(at, shown, strict=True)
    ]
    rules = Rules(size**-0.5, causal, 4 if slides else None, None, {})
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads[0], 20, size), *((heads[1], 20, size),) * 2, (2, heads[1], 5, size)]
    given = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    spans = Spans.of(readings, 20, [5], device)
    found: list[list[Tensor]] = []
    with torch.enable_grad():
        for at_once in (False, True):
            leaves = [value.clone().requires_grad_() for value in given]
            query, key, value, prefix = leaves
            if at_once:
                out = attend_at_once(query, key, value, [prefix], spans, rules)
            else:
                out = attend(query, key, value, None, [prefix], readings, rules)
            out.float().square().sum().backward()
            grads = [own.new_zeros(own.shape) if own.grad is None else own.grad for own in leaves]
            found.append([out.detach().float(), *(grad.float() for grad in grads)])
    pairs = zip(*found, strict=True)
    return max(float((own - it).norm() / own.norm().clamp(min=1e-6)) for own, it in pairs)
