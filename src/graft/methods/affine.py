"""The one algebraic form of every method that acts at a layer.

    y = out_scale * base(in_scale * x) + scaling * B(A x) + shift

Forward and merge are derived from it here, once, for all methods and all kinds of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from graft.methods.base import Layer

__all__ = ["Affine", "dropped", "merged"]


@dataclass(frozen=True)
class Affine:
    """An adapter's effect on one layer; what is None has no effect.

    `x` in the formula is the layer's own input and `base` the frozen layer, bias included. How a
    matrix acts on the input is the layer's affair (a convolution applies it to patches, an
    embedding looks up its columns).

    Attributes:
        in_scale: [I], multiplies the layer's input (its channels, in a convolution).
        out_scale: [O], multiplies the layer's output.
        A: [R, I], down-projection of the low-rank update.
        B: [O, R], up-projection of the low-rank update.
        scaling: Factor of the low-rank update.
        shift: [O], added to the output.
        dropout: Probability of dropout on the input of `A`; a merge leaves it out.
        seed: What its mask follows from; None: torch's generator.
    """

    in_scale: Tensor | None = None
    out_scale: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    scaling: float = 1.0
    shift: Tensor | None = None
    dropout: float = 0.0
    seed: int | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a low-rank update and nothing else."""
        others = (self.in_scale, self.out_scale, self.shift)
        return self.A is not None and all(other is None for other in others)

    def to(self, dtype: torch.dtype) -> Affine:
        """The same with its tensors in `dtype`."""
        tensors = {n: v.to(dtype) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def scale_input(self, layer: Layer, x: Tensor) -> Tensor:
        """What the base layer shall see instead of its input `x` [..., I]."""
        return x if self.in_scale is None else x * layer.over_inputs(self.in_scale).to(x.dtype)

    def adapt_output(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """The adapted output.

        Args:
            layer: The layer that acts.
            x: [..., I], the layer's own input, before `in_scale`.
            y: [..., O], `base(in_scale * x)`.

        Returns:
            [..., O] in the dtype of `y`: adapters are kept in fp32 over a half-precision base,
            and the small parameters are cast, not the large activations.
        """
        if self.out_scale is not None:
            y = y * layer.over_outputs(self.out_scale).to(y.dtype)
        if self.A is not None and self.B is not None:
            h = dropped(x, self.dropout, self.seed) if self.dropout else x
            low = layer.project(h, self.A) * self.scaling  # [..., R]
            y = y + layer.expand(low, self.B).to(y.dtype)
        if self.shift is not None:
            y = y + layer.over_outputs(self.shift).to(y.dtype)
        return y

    def with_input_dropped(self) -> Affine:
        """The same with dropout done on the columns of A: inputs dropped for all tokens at once.

        For a low-rank update that is made dense before it meets the input.
        """
        if not self.dropout or self.A is None:
            return self
        kept = dropped(torch.ones_like(self.A[..., :1, :]), self.dropout, self.seed)
        return replace(self, A=self.A * kept, dropout=0.0)

    def delta(self) -> Tensor | None:
        """`scaling * B A`, [O, I] or [E, O, I], in fp32 at least; None without A and B."""
        if self.A is None or self.B is None:
            return None
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.scaling * (self.B.to(wide) @ self.A.to(wide))


def dropped(x: Tensor, dropout: float, seed: int | None) -> Tensor:
    """`x` with dropout, by a mask that follows from `seed` or is torch's next one."""
    if seed is None:
        return F.dropout(x, dropout)
    dice = torch.Generator(x.device).manual_seed(seed)
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(1 - dropout, generator=dice).div_(1 - dropout)


def merged(layer: Layer, affines: Sequence[Affine]) -> tuple[Tensor, Tensor | None]:
    """Weight [O, I] and bias [O] of a plain layer that does what `affines` do in this order.

    `W' = out_scale * W * in_scale + scaling * B A`, `b' = out_scale * b + shift`, computed in
    fp32 at least, from the layer's own weight. A layer whose weight is no matrix (a norm) takes a
    shift and nothing else.
    """
    own, bias = layer.weight, layer.bias
    wide = torch.promote_types(own.dtype, torch.float32)
    weight, shift = own.to(wide), None if bias is None else bias.to(wide)
    for affine in affines:  # every input factor acts on the layer's own input, before all else
        if affine.in_scale is not None:
            weight = weight * layer.over_columns(affine.in_scale.to(wide))
    for affine in affines:
        if affine.out_scale is not None:
            factors = affine.out_scale.to(wide)
            weight = weight * factors[:, None]
            shift = None if shift is None else shift * factors
        delta = affine.delta()
        if delta is not None:
            weight = weight + delta.to(wide)
        if affine.shift is not None:
            added = affine.shift.to(wide)
            shift = added if shift is None else shift + added
    return weight, shift
