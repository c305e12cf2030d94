"""A site: a target layer with its adapters, applied through two hooks.

The base model is not rewritten: its modules, names and saved files stay what they were, and
detaching removes two handles. The adapters' parameters live beside the base model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.adapt.fused import Update, low_rank_update
from graft.adapt.layers import LayerView
from graft.adapt.routing import Router
from graft.methods import Affine, LayerAdapter
from graft.methods.affine import merged

__all__ = ["Site"]

_FUSABLE = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class _Plan:
    """What a site does in one call.

    Attributes:
        parts: Each group's effects, in the order in which they act; empty where nothing acts.
        updates: The same, where all are low-rank updates that can be fused with the layer.
    """

    parts: list[list[Affine]]
    updates: list[Update] | None = None


class Site:
    """One target layer, its adapters by name, and how rows reach them.

    Attributes:
        layer: View of the base model's layer.
        adapters: This layer's adapters by name.
        merged: Names of the adapters folded into the layer's weight, in that order.
    """

    fuses: ClassVar[bool] = True  # the formula as autograd sees it is the reference

    def __init__(self, layer: LayerView, router: Router) -> None:
        self.layer = layer
        self.router = router
        self.adapters: dict[str, LayerAdapter] = {}
        self.merged: list[str] = []
        # From the pre-hook to the hook of one call: the layer's own input, and what to do.
        self._pending: tuple[Tensor, _Plan] | None = None
        self._handles = [
            layer.module.register_forward_pre_hook(self._before, with_kwargs=True),
            layer.module.register_forward_hook(self._after, always_call=True),
        ]

    def add(self, name: str, view: LayerView, adapter: LayerAdapter) -> None:
        """Put an adapter at the layer (`view` is one more view of it)."""
        self.adapters[name] = adapter

    def adds_bias(self, name: str) -> bool:
        """Whether the adapter `name` gives the layer a bias that it has no place for."""
        own = self.adapters.get(name)
        if own is None or self.layer.bias is not None:
            return False
        return own.affine(self.layer).shift is not None

    def detach(self) -> None:
        """Remove the hooks; the layer is the base model's own again."""
        for handle in self._handles:
            handle.remove()

    def merge(self, name: str) -> None:
        """Fold the adapter `name` into the layer's weight and bias, rounding once for all."""
        names = [*self.merged, name]
        with torch.no_grad():
            affines = [self.adapters[each].affine(self.layer) for each in names]
            self.layer.write(*merged(self.layer, affines))
        self.merged = names  # once it is in

    def unmerge(self) -> None:
        """Restore the layer's own weight and bias exactly."""
        self.layer.restore()
        self.merged.clear()

    def kept_parameters(self) -> list[nn.Parameter]:
        """The layer's own parameters, while merged ones stand in for them."""
        return self.layer.kept_parameters()

    def _parts(self) -> list[list[Affine]]:
        return [
            [
                self._affine(name)
                for name in group.adapters
                if name in self.adapters and name not in self.merged
            ]
            for group in self.router.groups
        ]

    def _affine(self, name: str) -> Affine:
        return self.router.seeded(self.adapters[name].affine(self.layer), name, self.layer.path)

    def _plan(self, x: Tensor) -> _Plan:
        """What to do, as the router says; found once where nothing changes from call to call."""
        kept = None if torch.compiler.is_compiling() else self.router.kept
        if kept is None:
            return self._made(x, self._parts())
        if self not in kept:
            parts = self._parts()
            if x.is_floating_point() and x.device.type != "cpu":  # there see `fused`
                parts = [[affine.to(x.dtype) for affine in group] for group in parts]
            kept[self] = self._made(x, parts)
        return kept[self]

    def _made(self, x: Tensor, parts: list[list[Affine]]) -> _Plan:
        if not any(parts):
            return _Plan([])
        return _Plan(parts, self._updates(parts) if self._can_fuse(x, parts) else None)

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._pending = None
        x, *rest = (*args, *kwargs.values())  # a layer takes its input, by whatever name
        plan = self._plan(x)
        if not plan.parts:
            return None
        self._pending = (x, plan)
        if plan.updates is not None:  # the update takes over the gradient of the layer too
            return ((x.detach(), *rest), {}) if torch.is_grad_enabled() else None
        if all(affine.in_scale is None for group in plan.parts for affine in group):
            return None
        return (self._by_group(self._scale_input, plan.parts, x), *rest), {}

    def _after(self, module: nn.Module, args: tuple[Any, ...], y: Tensor | None) -> Tensor | None:
        if self._pending is None:
            return y
        (x, plan), self._pending = self._pending, None
        if y is None:  # checkpointing stops inside a layer, once it has what it needs
            return None
        if plan.updates is not None:
            rows = x.numel() // x.shape[-1]
            sizes = [rows] if len(plan.updates) == 1 else self.router.sizes(rows)
            return low_rank_update(x, y, self.layer.weight, plan.updates, sizes)
        return self._by_group(self._adapt_output, plan.parts, x, y)

    def _can_fuse(self, x: Tensor, parts: list[list[Affine]]) -> bool:
        """Whether there is nothing here but a plain layer and a low-rank update for a row."""
        module = self.layer.module
        return (
            self.fuses
            and type(module) in _FUSABLE
            and not self.merged
            and module.weight.dtype == x.dtype
            and not any(p.requires_grad for p in module.parameters(recurse=False))
            and "forward" not in module.__dict__  # as accelerate's offloading has
            and len(module._forward_hooks) == len(module._forward_pre_hooks) == 1
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(x.device.type)
            and all(len(group) < 2 and all(a.is_low_rank for a in group) for group in parts)
        )

    def _updates(self, parts: list[list[Affine]]) -> list[Update]:
        one_each = [group[0] if group else Affine() for group in parts]
        return [Update(a.A, a.B, a.scaling, a.dropout, a.seed) for a in one_each]

    def _by_group(
        self, act: Callable[..., Tensor], parts: list[list[Affine]], *tensors: Tensor
    ) -> Tensor:
        if len(parts) == 1:
            return act(parts[0], *tensors)
        # One split: a slice per group would make each slice's backward allocate the whole batch.
        axis = self.router.axis(tensors[0])
        sizes = self.router.sizes(tensors[0].shape[axis])
        pieces = zip(*(tensor.split(sizes, axis) for tensor in tensors), strict=True)
        acted = [act(group, *piece) for group, piece in zip(parts, pieces, strict=True)]
        return torch.cat(acted, axis)

    def _scale_input(self, group: list[Affine], x: Tensor) -> Tensor:
        for affine in group:
            x = affine.scale_input(self.layer, x)
        return x

    def _adapt_output(self, group: list[Affine], x: Tensor, y: Tensor) -> Tensor:
        if self.merged and any(affine.in_scale is not None for affine in group):
            y = y + self._owed_by_merged(x - self._scale_input(group, x), y)
        for affine in group:
            y = affine.adapt_output(self.layer, x, y)
        return y

    def _owed_by_merged(self, lost: Tensor, y: Tensor) -> Tensor:
        """What merged low-rank updates would have made of `lost`, the input that they do not see.

        They read the layer's own input, but in the weight they get it scaled like the weight does.
        """
        owed = torch.zeros_like(y)
        for name in self.merged:
            affine = replace(self.adapters[name].affine(self.layer), shift=None, dropout=0.0)
            owed = affine.adapt_output(self.layer, lost, owed)
        return owed
