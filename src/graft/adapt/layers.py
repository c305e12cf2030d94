"""One view of the layers that can be adapted: sizes, weight and bias, whatever the class.

This is the only place that knows how a layer stores its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.errors import MergeError

__all__ = ["LayerView", "kind_of"]


def kind_of(module: nn.Module) -> str | None:
    """`linear`, `conv1d` (GPT-2's transposed linear) or `norm`; None for what is not adapted."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "norm" if isinstance(module, nn.LayerNorm) else None


@dataclass
class LayerView:
    """A target layer as methods see it (see `graft.methods.base.Layer`).

    Attributes:
        module: The base model's own layer, never replaced.
        path: Its dotted path in the base model.
        role: "query", "key", "value", "qkv", "down", or None.
        kept: Copies of weight and bias from before the first merge, while something is merged.
    """

    module: nn.Module
    path: str
    role: str | None = None
    kept: tuple[Tensor, Tensor | None] | None = None

    @property
    def kind(self) -> str:
        return kind_of(self.module) or type(self.module).__name__

    @property
    def in_features(self) -> int:
        stored = self.module.weight
        return int(stored.shape[0] if self.kind != "linear" else self.module.in_features)

    @property
    def out_features(self) -> int:
        return int(
            self.module.out_features if self.kind == "linear" else self.module.weight.shape[-1]
        )

    @property
    def weight(self) -> Tensor:
        """The base model's weight, [O, I] ([O] for a norm), also while adapters are merged."""
        return self._oriented(self.module.weight if self.kept is None else self.kept[0])

    @property
    def bias(self) -> Tensor | None:
        """The base model's bias, [O], also while adapters are merged."""
        return self.module.bias if self.kept is None else self.kept[1]

    @property
    def current(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are now, with what is merged into them."""
        return self._oriented(self.module.weight), self.module.bias

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put merged values in place, in the layer's own layout and dtype.

        The originals are kept before the first change, so that `restore` is exact.
        """
        stored = self.module.weight
        if not stored.dtype.is_floating_point:
            raise MergeError(
                f"{self.path} is quantised ({stored.dtype}); load the base model unquantised to merge."
            )
        if self.kept is None:
            own = self.module.bias
            self.kept = (stored.detach().clone(), None if own is None else own.detach().clone())
        with torch.no_grad():
            stored.copy_(self._oriented(weight))
            if bias is None:
                return
            if self.module.bias is None:
                fresh = torch.empty_like(bias, dtype=stored.dtype)
                self.module.bias = nn.Parameter(fresh, requires_grad=False)
            self.module.bias.copy_(bias)

    def restore(self) -> None:
        """Put back what `write` had kept, bit for bit."""
        if self.kept is None:
            return
        weight, bias = self.kept
        with torch.no_grad():
            self.module.weight.copy_(weight)
            if bias is None:
                self.module.bias = None
            else:
                self.module.bias.copy_(bias)
        self.kept = None

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.T if self.kind == "conv1d" else weight  # Conv1D stores [I, O]
