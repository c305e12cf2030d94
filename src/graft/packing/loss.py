"""Cross entropy where there is a label, without ever holding all logits.

The logits of a chunk live only while its loss and its gradient are computed, both in the forward;
the backward scales the gradient. So the head's work is done once, and the memory is a chunk's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Head", "chunked_cross_entropy"]

_BLOCK = 2**22  # bytes of logits in fp32 that are at hand at once

Head = Callable[[Tensor], Tensor]  # hidden states [M, D] -> logits [M, V]


def chunked_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    head: Head,
    parameters: Sequence[Tensor] = (),
    size: int = 512,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of cross entropies, differentiable in `hidden` and `parameters`.

    Args:
        hidden: [M, D], hidden states in front of the head.
        labels: [M], ids.
        weights: [M], of each label in the sum.
        head: The model's head.
        parameters: What the head trains.
        size: Most tokens in a chunk.

    Returns:
        The sum, and each label's own cross entropy [M], which has no gradient.
    """
    return _Chunked.apply(hidden, labels, weights, head, size, *parameters)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        weights: Tensor,
        head: Head,
        size: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0] or any(ctx.needs_input_grad[5:])
        grad = torch.empty_like(hidden) if wanted else None
        sums: list[Tensor] = [torch.zeros_like(p) for p in parameters]
        losses = []
        for at in range(0, len(hidden), size):
            chunk = slice(at, at + size)
            with torch.set_grad_enabled(wanted):
                piece = hidden[chunk].detach().requires_grad_(wanted)
                logits = head(piece)
            own, slope = _softmax(logits.detach(), labels[chunk], weights[chunk], wanted)
            losses.append(own)
            if grad is None:
                continue
            grad[chunk], *more = torch.autograd.grad(
                logits, [piece, *parameters], slope, allow_unused=True
            )
            for own, given in zip(sums, more, strict=True):
                if given is not None:
                    own += given
        ctx.grads = grad, sums
        losses = torch.cat(losses)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor, of_losses: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad, sums = ctx.grads
        return (
            grad * upstream.to(grad.dtype),
            None,
            None,
            None,
            None,
            *(own * upstream.to(own.dtype) for own in sums),
        )


def _softmax(
    logits: Tensor, labels: Tensor, weights: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Of logits [m, V] each label's cross entropy [m], and the gradient of their weighted sum.

    A few rows at a time, which stay in a processor's cache: it is memory that is slow here.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    out = torch.empty_like(logits) if wanted else None
    losses, size = [], max(_BLOCK // (4 * logits.shape[1]), 16)
    for at in range(0, len(logits), size):
        rows = slice(at, at + size)
        own = labels[rows, None]
        p = torch.log_softmax(logits[rows], -1, dtype=wide)
        losses.append(-p.gather(1, own)[:, 0])
        if out is not None:  # softmax, less 1 at the label
            p.exp_().scatter_add_(1, own, p.new_full((1, 1), -1.0).expand(own.shape))
            out[rows] = p.mul_(weights[rows, None])
    return torch.cat(losses), out
