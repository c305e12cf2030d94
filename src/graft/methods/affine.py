"""The one algebraic form of every method that acts at a layer.

    y = out_scale * base(in_scale * x) + scaling * B(A x) + shift

Forward and merge are derived from it here, once, for all methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine:
    """An adapter's effect on one layer; what is None has no effect.

    `x` in the formula is the layer's own input and `base` the frozen layer, bias included.

    Attributes:
        in_scale: [I], multiplies the layer's input.
        out_scale: [O], multiplies the layer's output.
        A: [R, I], down-projection of the low-rank update.
        B: [O, R], up-projection of the low-rank update.
        scaling: Factor of the low-rank update.
        shift: [O], added to the output.
        dropout: Probability of dropout on the input of `A`; a merge leaves it out.
    """

    in_scale: Tensor | None = None
    out_scale: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    scaling: float = 1.0
    shift: Tensor | None = None
    dropout: float = 0.0

    def scale_input(self, x: Tensor) -> Tensor:
        """What the base layer shall see instead of its input `x` [..., I]."""
        return x if self.in_scale is None else x * self.in_scale.to(x.dtype)

    def adapt_output(self, x: Tensor, y: Tensor) -> Tensor:
        """The adapted output.

        Args:
            x: [..., I], the layer's own input, before `in_scale`.
            y: [..., O], `base(in_scale * x)`.

        Returns:
            [..., O] in the dtype of `y`: adapters are kept in fp32 over a half-precision base,
            and the small parameters are cast, not the large activations.
        """
        if self.out_scale is not None:
            y = y * self.out_scale.to(y.dtype)
        if self.A is not None and self.B is not None:
            h = F.dropout(x, self.dropout) if self.dropout else x
            low = F.linear(h, self.A.to(x.dtype)) * self.scaling  # [..., R]
            y = y + F.linear(low, self.B.to(x.dtype)).to(y.dtype)
        if self.shift is not None:
            y = y + self.shift.to(y.dtype)
        return y

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight [O, I] and bias [O] of a plain layer that does what the adapted one does.

        `W' = out_scale * W * in_scale + scaling * B A`, `b' = out_scale * b + shift`, computed in
        fp32 at least. The arguments are not changed. A layer whose weight is no matrix (a norm)
        takes a shift and nothing else.
        """
        wide = torch.promote_types(weight.dtype, torch.float32)
        merged, shifted = weight.to(wide), None if bias is None else bias.to(wide)
        if self.in_scale is not None:
            merged = merged * self.in_scale.to(wide)
        if self.out_scale is not None:
            merged = merged * self.out_scale.to(wide)[:, None]
            shifted = None if shifted is None else shifted * self.out_scale.to(wide)
        if self.A is not None and self.B is not None:
            merged = merged + self.scaling * (self.B.to(wide) @ self.A.to(wide))
        if self.shift is not None:
            shift = self.shift.to(wide)
            shifted = shift if shifted is None else shifted + shift
        return merged, shifted
