"""A model's layers on packed rows, while everything in front of them and behind sees padded ones.

For models of which only the layers can do without padding: encoders, whose embeddings and poolers
count and look up positions in padded rows, and decoders under another head than a language
model's. The first layer's input is packed, the last one's output is padded again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.adapt.model import PeftModel
from graft.adapt.structure import is_causal, is_encoder_decoder
from graft.packing.attention import Unpackable, attending_by_segment, attention_configs
from graft.packing.layout import Layout

__all__ = ["PackedLayers", "without_cache"]


class PackedLayers:
    """The layers of a model with adapters at layers.

    Args:
        model: A model with one stack of layers.

    Raises:
        Unpackable: A model with two stacks or none, or an adapter with virtual tokens, which each
            row of an encoder has in front of its own.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.base: Any = model.base_model
        name = type(self.base).__name__
        if is_encoder_decoder(self.base):
            raise Unpackable(f"{name} is an encoder-decoder.")
        if any(adapter.virtual_tokens is not None for adapter in model.adapters.values()):
            raise Unpackable(f"{name} has virtual tokens in every row.")
        lists = [m for m in self.base.modules() if isinstance(m, nn.ModuleList) and _is_stack(m)]
        if len(lists) != 1:
            raise Unpackable(f"{name} has {len(lists)} stacks of layers.")
        self.layers = list(lists[0])
        takes = inspect.signature(self.layers[0].forward).parameters.values()
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in takes):
            raise Unpackable(f"{name} has layers that hand nothing on to their attention.")
        self.causal = is_causal(self.base)
        self.configs = attention_configs(self.base)

    @contextmanager
    def packing(
        self, mask: Tensor, adapter_names: Sequence[str | Sequence[str]] | None = None
    ) -> Iterator[None]:
        """Run the layers of a forward inside the block on real tokens alone.

        Args:
            mask: The forward's attention mask [B, T], which it is to be given too.
            adapter_names: The forward's.
        """
        order, _ = self.model.route(adapter_names, len(mask))
        batch = _Batch(self, mask[order].bool())
        handles = []
        for layer in self.layers:
            handles += [
                layer.register_forward_pre_hook(batch.before, with_kwargs=True),
                layer.register_forward_hook(batch.after),
            ]
        try:
            yield
        finally:
            batch.close()
            for handle in handles:
                handle.remove()


def without_cache(model: PeftModel) -> dict[str, bool]:
    """The argument by which a forward of the base model keeps no cache, where it takes one."""
    takes = inspect.signature(model.base_model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


def _is_stack(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and all(isinstance(m, GradientCheckpointingLayer) for m in modules)


class _Batch:
    """One padded batch on its way through the layers."""

    def __init__(self, owner: PackedLayers, mask: Tensor) -> None:
        self.owner = owner
        self.mask = mask
        self.places = mask.flatten().nonzero()[:, 0]  # [S] of B * T
        self.lengths: list[int] = mask.sum(1).tolist()
        self._layout: Layout | None = None
        self._inside: AbstractContextManager | None = None

    def before(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        model = self.owner.model
        if self._layout is None:
            none = [0] * len(model.router.groups), [None] * len(model.router.groups)
            self._layout = Layout(
                self.lengths, model.router.groups, *none, causal=self.owner.causal
            )
        hidden, *others = args
        if layer is self.owner.layers[0]:
            hidden = self._packed(hidden)
        given = {
            name: None if "mask" in name else self._all_packed(value)
            for name, value in kwargs.items()
        }
        self._inside = model.router.use(
            self._layout.groups,
            packed=True,
            within=lambda: attending_by_segment(self.owner.configs),
        )
        self._inside.__enter__()
        return (hidden, *(None for _ in others)), {**given, "packed": self._layout}

    def after(self, layer: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        self.close()
        if layer is not self.owner.layers[-1]:
            return out
        if isinstance(out, tuple):
            return (self._padded(out[0]), *out[1:])
        return self._padded(out)

    def close(self) -> None:
        """Leave the layer that is under way."""
        if self._inside is not None:
            inside, self._inside = self._inside, None
            inside.__exit__(None, None, None)

    def _all_packed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._packed(value) if value.shape[1:2] == self.mask.shape[1:] else value
        if isinstance(value, tuple):
            return tuple(self._all_packed(item) for item in value)
        return value

    def _packed(self, value: Tensor) -> Tensor:
        """[B, T, ...] or [1, T, ...] -> [1, S, ...]."""
        rows = value.expand(len(self.mask), *value.shape[1:])
        return rows.flatten(0, 1).index_select(0, self.places)[None]

    def _padded(self, value: Tensor) -> Tensor:
        """[1, S, D] -> [B, T, D], zero at pads."""
        out = value.new_zeros(self.mask.numel(), value.shape[-1])
        return out.index_copy(0, self.places, value[0]).view(*self.mask.shape, -1)
