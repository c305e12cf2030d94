"""Low-rank updates of a plain linear layer as one autograd function.

    y = base(x) + scaling * B(A dropout(x))

What autograd would make of the formula keeps a product per layer and adds two gradients of the
input's size. Here `x` is kept once (layers that read the same input share it) and A x, which is
small; the update is added in place to what the base layer returned, the input's gradient is summed
inside the matrix product, and a dropout mask is made again from its seed. The frozen weight has no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.methods.affine import dropped

__all__ = ["Update", "low_rank_update"]

_FEW = 32  # rows, up to which float32 is the faster


@dataclass(frozen=True)
class Update:
    """The low-rank update of the rows of one group.

    Attributes:
        A: [R, I], or None: no update.
        B: [O, R], or None.
        scaling: Its factor.
        dropout: Probability of dropout on its input.
        seed: What the mask follows from; None: torch's generator gives one.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    scaling: float = 1.0
    dropout: float = 0.0
    seed: int | None = None


def low_rank_update(
    x: Tensor, y: Tensor, weight: Tensor, updates: Sequence[Update], sizes: list[int]
) -> Tensor:
    """Add `updates` to `y`, in place, and take over the gradient of the layer.

    Args:
        x: [..., I], the layer's input.
        y: [..., O], what the layer made of `x` without recording it.
        weight: [O, I], the layer's frozen weight.
        updates: By group.
        sizes: How many rows each group has, of all of `x` flattened to [rows, I].
    """
    if not torch.is_grad_enabled():
        _add(x, y, updates, sizes, [_seed(update) for update in updates])
        return y
    factors = [factor for update in updates for factor in (update.A, update.B)]
    return _LowRank.apply(x, [y], weight, updates, sizes, *factors)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        made: list[Tensor],  # in a list, as it becomes the output
        weight: Tensor,
        updates: Sequence[Update],
        sizes: list[int],
        *factors: Tensor | None,
    ) -> Tensor:
        (y,) = made
        if y._is_view():
            y = y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())
        ctx.updates, ctx.sizes = updates, sizes
        ctx.seeds = [_seed(update) for update in updates]
        lows = _add(x, y, updates, sizes, ctx.seeds)
        ctx.save_for_backward(x, weight, *factors, *lows)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight, *kept = ctx.saved_tensors
        factors, lows = kept[: -len(ctx.sizes)], kept[-len(ctx.sizes) :]
        flat_x, flat = x.flatten(0, -2), grad.reshape(-1, grad.shape[-1])
        grad_x = flat @ weight if ctx.needs_input_grad[0] else None
        out: list[Tensor | None] = []
        at = 0
        for index, (size, update) in enumerate(zip(ctx.sizes, ctx.updates, strict=True)):
            part, at = slice(at, at + size), at + size
            a, b = factors[2 * index : 2 * index + 2]
            low = lows[index]
            if a is None or b is None or low is None:
                out += [None, None]
                continue
            seed = ctx.seeds[index]
            own_x = _dropped(flat_x[part], update.dropout, seed)
            low_grad = (flat[part] @ b.to(grad.dtype)).mul_(update.scaling)
            out += [
                (low_grad.T @ own_x).to(a.dtype),
                (flat[part].T @ low).mul_(update.scaling).to(b.dtype),
            ]
            if grad_x is not None and update.dropout:
                grad_x[part] += _dropped(low_grad @ a.to(x.dtype), update.dropout, seed)
            elif grad_x is not None:
                grad_x[part].addmm_(low_grad, a.to(x.dtype))
        return (None if grad_x is None else grad_x.view(x.shape), None, None, None, None, *out)


def _add(
    x: Tensor,
    y: Tensor,
    updates: Sequence[Update],
    sizes: list[int],
    seeds: Sequence[int | None],
) -> list[Tensor | None]:
    """Add `updates` to `y`, in place; each one's A dropout(x) [rows, R], where there is one."""
    lows: list[Tensor | None] = []
    xs, ys = [x], [y]
    if len(sizes) > 1:
        xs, ys = x.flatten(0, -2).split(sizes), y.view(-1, y.shape[-1]).split(sizes)
    for own_x, own_y, rows, update, seed in zip(xs, ys, sizes, updates, seeds, strict=True):
        a, b = update.A, update.B
        if a is None or b is None:
            lows.append(None)
            continue
        own_x = _dropped(own_x, update.dropout, seed).flatten(0, -2)
        own_y = own_y.view(-1, y.shape[-1])
        if rows <= _FEW and x.device.type == "cpu":
            # Setting up a product in half precision costs more than so few rows are worth.
            low = F.linear(own_x.to(a.dtype), a)
            own_y.add_(F.linear(low, b), alpha=update.scaling)
        else:
            low = own_x @ a.T.to(x.dtype)
            own_y.addmm_(low, b.T.to(y.dtype), alpha=update.scaling)
        lows.append(low.to(x.dtype))
    return lows


def _seed(update: Update) -> int | None:
    """Of the dropout mask; drawn, if it is not given, where torch's own dropout draws."""
    if not update.dropout:
        return None
    return int(torch.randint(2**62, ())) if update.seed is None else update.seed


def _dropped(x: Tensor, dropout: float, seed: int | None) -> Tensor:
    """`x` with dropout by `seed`; None: without."""
    return x if seed is None else dropped(x, dropout, seed)
