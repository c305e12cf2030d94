"""Softmax attention of segments that do not see each other, as one autograd function.

Probabilities are not kept but made again in the backward, for a block of a segment's queries at a
time and the keys that these may see, so that what causality hides is not computed, and what is held
at once is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Reading", "Rules", "attend"]

_BLOCK = 128  # queries of a head


@dataclass(frozen=True)
class Reading:
    """What one segment attends with, and to.

    Attributes:
        queries: Its place among the packed queries.
        keys: Places among the packed keys of all that it sees, in order.
        prefix: Index of the prefix that it sees besides, in front; None: it sees none.
        corner: First row and column of the bias that are its own, where there is one.
    """

    queries: slice
    keys: tuple[slice, ...]
    prefix: int | None = None
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Rules:
    """How segments attend.

    Attributes:
        scaling: Of the products of queries and keys.
        causal: Whether a query sees no keys behind its own; a prefix is seen by all.
        window: How far back it sees, counting itself, but for a prefix; None: to the start.
        softcap: Limit of the scaled products, or None.
        masks: Made so far: those of other layers are the same.
    """

    scaling: float
    causal: bool
    window: int | None
    softcap: float | None
    masks: dict[Any, Tensor]

    def hidden(self, count: int, before: int, device: torch.device) -> Tensor:
        """What `count` queries behind `before` others do not see of themselves [n, n], or of all
        [n, before + n] where a window ends among them."""
        window = self.window or before + count
        slides = before + count > window
        shown = before if slides else 0
        at = count, shown, window if slides else None, device
        if at not in self.masks:
            query = torch.arange(shown, shown + count, device=device)[:, None]
            key = torch.arange(shown + count, device=device)
            mask = key > query
            if slides:
                mask |= key <= query - window
            self.masks[at] = mask
        return self.masks[at]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    prefixes: Sequence[Tensor],
    readings: Sequence[Reading],
    rules: Rules,
) -> Tensor:
    """The attention of all segments.

    Args:
        query: [H * G, S, K].
        key: [H, S', K].
        value: [H, S', K].
        bias: [H * G, L, L'], of which each reading adds its corner to the scores, or None.
        prefixes: Keys and values, each [2, H, N, K].
        readings: By segment; together they read every query once.
        rules: How.

    Returns:
        [S, H * G, K].
    """
    return _Attend.apply(query, key, value, bias, readings, rules, *prefixes)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        readings: Sequence[Reading],
        rules: Rules,
        *prefixes: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias, *prefixes)
        ctx.how = readings, rules
        heads, length, size = query.shape
        out = query.new_empty(length, heads, size)
        by_head = out.transpose(0, 1)
        for reading in readings:
            segment = _Segment(reading, rules, key, value, bias, prefixes)
            for block in segment.blocks():
                p, _ = segment.probabilities(segment.part(query, block), block)
                segment.put(torch.bmm(p, segment.v[:, : block.seen]), by_head, block)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, bias, *prefixes = ctx.saved_tensors
        readings, rules = ctx.how
        grad = grad.transpose(0, 1)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        grad_prefixes = [torch.zeros_like(prefix) for prefix in prefixes]
        wide = torch.promote_types(key.dtype, torch.float32)
        for reading in readings:
            segment = _Segment(reading, rules, key, value, bias, prefixes)
            k, v = segment.k, segment.v
            sum_k, sum_v = [], []
            for block in segment.blocks():
                q, g, seen = segment.part(query, block), segment.part(grad, block), block.seen
                p, slope = segment.probabilities(q, block)
                sum_v.append(torch.bmm(p.transpose(1, 2), g))
                grad_p = torch.bmm(g, v[:, :seen].transpose(1, 2))
                s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
                if grad_bias is not None:
                    segment.corner(grad_bias, block).add_(s.view(-1, block.count, seen))
                if slope is not None:
                    s *= slope
                segment.put(_product(s, k[:, :seen], rules.scaling), grad_query, block)
                sum_k.append(_product(s.transpose(1, 2), q, rules.scaling))
            segment.add(_summed(sum_k, wide), grad_key, [prefix[0] for prefix in grad_prefixes])
            segment.add(_summed(sum_v, wide), grad_value, [prefix[1] for prefix in grad_prefixes])
        return grad_query, grad_key, grad_value, grad_bias, None, None, *grad_prefixes


def _product(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """scaling * a b."""
    out = a.new_empty(*a.shape[:2], b.shape[2])
    return out.baddbmm_(a, b, beta=0, alpha=scaling)


def _summed(parts: list[Tensor], wide: torch.dtype) -> Tensor:
    """The sum of `parts` [H, n, K], of which each is as long as the last or shorter."""
    *others, last = parts
    if not others:
        return last
    out = last.to(wide)
    for part in others:
        out[:, : part.shape[1]] += part
    return out


def _joined(pieces: list[Tensor]) -> Tensor:
    """[H, n, K] each -> [H, N, K]."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


@dataclass(frozen=True)
class _Block:
    """Queries of a segment that are computed at once.

    Attributes:
        queries: Their place among the packed ones.
        first: Number of the first one in its segment.
        seen: Keys that they see, which are the segment's first ones.
    """

    queries: slice
    first: int
    seen: int

    @property
    def count(self) -> int:
        return self.queries.stop - self.queries.start


class _Segment:
    """What one segment sees, and its queries by block.

    Attributes:
        k: Keys [H, M, K] of prefix, virtual tokens and the segment itself.
        v: Values [H, M, K].
    """

    def __init__(
        self,
        reading: Reading,
        rules: Rules,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        prefixes: Sequence[Tensor],
    ) -> None:
        self.reading, self.rules, self.bias = reading, rules, bias
        front = [] if reading.prefix is None else [prefixes[reading.prefix]]
        self.always = sum(prefix.shape[2] for prefix in front)
        self.k = _joined([*(own[0] for own in front), *(key[:, s] for s in reading.keys)])
        self.v = _joined([*(own[1] for own in front), *(value[:, s] for s in reading.keys)])

    def blocks(self) -> Iterator[_Block]:
        queries, keys = self.reading.queries, self.k.shape[1]
        length = queries.stop - queries.start
        count = -(-length // _BLOCK) or 1
        size = -(-length // count) or 1
        for first in range(0, length, size):
            last = min(first + size, length)
            seen = keys - length + last if self.rules.causal else keys
            yield _Block(slice(queries.start + first, queries.start + last), first, seen)

    def part(self, value: Tensor, block: _Block) -> Tensor:
        """[H * G, S, K] -> [H, G * n, K]: the G query heads of a key head, one behind the other."""
        return value[:, block.queries].unflatten(0, (len(self.k), -1)).flatten(1, 2)

    def put(self, value: Tensor, out: Tensor, block: _Block) -> None:
        """Write `value` [H, G * n, K] where `part` reads."""
        out[:, block.queries] = value.view(-1, block.count, value.shape[2])

    def add(self, value: Tensor, out: Tensor, prefixes: Sequence[Tensor]) -> None:
        """Add `value` [H, M, K] to where `k` and `v` were read from."""
        if self.always:
            assert self.reading.prefix is not None
            prefixes[self.reading.prefix].add_(value[:, : self.always])
        at = self.always
        for own in self.reading.keys:
            length = own.stop - own.start
            out[:, own] += value[:, at : at + length]
            at += length

    def corner(self, bias: Tensor, block: _Block) -> Tensor:
        """[H * G, n, seen] of a bias [H * G, L, L']."""
        row, column = self.reading.corner
        first = row + block.first
        return bias[:, first : first + block.count, column : column + block.seen]

    def probabilities(self, q: Tensor, block: _Block) -> tuple[Tensor, Tensor | None]:
        """[H, G * n, seen], and the softcap's slope there."""
        rules, slope = self.rules, None
        scores = _product(q, self.k[:, : block.seen].transpose(1, 2), rules.scaling)
        if rules.softcap is not None:
            capped = torch.tanh(scores / rules.softcap)
            slope = 1 - capped.square()
            scores = capped * rules.softcap
        by_query = scores.view(-1, block.count, block.seen)
        if self.bias is not None:
            by_query += self.corner(self.bias, block)
        if rules.causal:
            before = block.seen - block.count - self.always
            mask = rules.hidden(block.count, before, q.device)
            by_query[:, :, -mask.shape[1] :].masked_fill_(mask, -torch.inf)
        return torch.softmax(scores, -1), slope
