"""A model's layers on packed rows, while everything in front of them and behind sees padded ones.

For models of which only the layers can do without padding: encoders, whose embeddings and poolers
count and look up positions in padded rows, encoder-decoders, and decoders under another head than a
language model's. The first layer's input is packed, the last one's output is padded again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.adapt.model import PeftModel
from graft.adapt.structure import is_causal, is_encoder_decoder
from graft.packing.attention import (
    Unpackable,
    attending_by_segment,
    attention_configs,
    refuse_convolutions,
    window_mark,
)
from graft.packing.distances import counters_of, counting_by_segment
from graft.packing.layout import Layout

__all__ = ["PackedLayers", "without_cache"]


class PackedLayers:
    """The layers of a model with adapters.

    Args:
        model: A model with one stack of layers, or with an encoder's and a decoder's.

    Raises:
        Unpackable: A model with other stacks or none, or whose layers hand nothing on to their
            attention.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.base: Any = model.base_model
        if is_encoder_decoder(self.base):
            owners = [(self.base.get_encoder(), False), (self.base.get_decoder(), True)]
        else:
            owners = [(self.base, is_causal(self.base))]
        self.stacks = [_Stack(self, *owner) for owner in owners]
        self.configs = attention_configs(self.base)

    @contextmanager
    def packing(
        self,
        mask: Tensor,
        adapter_names: Sequence[str | Sequence[str]] | None = None,
        decoder_mask: Tensor | None = None,
    ) -> Iterator[None]:
        """Run the layers of a forward inside the block on real tokens alone.

        Args:
            mask: The forward's attention mask [B, T], which it is to be given too.
            adapter_names: The forward's.
            decoder_mask: Of what the decoder behind an encoder reads [B, T']; None: the encoder's.
        """
        order, _ = self.model.route(adapter_names, len(mask))
        masks = [None if m is None else m[order].bool() for m in (mask, decoder_mask)]
        with ExitStack() as stack:
            batch = None
            for own, its in zip(self.stacks, masks, strict=False):
                batch = stack.enter_context(own.packing(its, batch))
            yield


def without_cache(model: PeftModel) -> dict[str, bool]:
    """The argument by which a forward of the base model keeps no cache, where it takes one."""
    takes = inspect.signature(model.base_model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


class _Stack:
    """One stack of layers.

    Attributes:
        layers: In the order in which they run.
        causal: Whether each token sees only those before it.
        names: Of the arguments of a layer.
        counters: Modules in them that make biases of distances.
    """

    def __init__(self, owner: PackedLayers, module: nn.Module, causal: bool) -> None:
        self.owner = owner
        self.causal = causal
        name = type(owner.base).__name__
        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and _is_stack(m)]
        if len(lists) != 1:
            raise Unpackable(f"{name} has {len(lists)} stacks of layers.")
        self.layers: list[nn.Module] = list(lists[0])
        refuse_convolutions(lists[0])
        takes = inspect.signature(self.layers[0].forward).parameters
        self.names = list(takes)
        self.counters = counters_of(self.layers)
        if all(own.kind is not inspect.Parameter.VAR_KEYWORD for own in takes.values()):
            raise Unpackable(f"{name} has layers that hand nothing on to their attention.")

    @contextmanager
    def packing(self, mask: Tensor | None, source: _Batch | None) -> Iterator[_Batch]:
        """Pack what goes through the stack inside the block (see `_Batch`)."""
        batch = _Batch(self, mask, source)
        handles = []
        for layer in self.layers:
            handles += [
                layer.register_forward_pre_hook(batch.before, with_kwargs=True),
                layer.register_forward_hook(batch.after),
            ]
        try:
            yield batch
        finally:
            batch.close()
            for handle in handles:
                handle.remove()


def _is_stack(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and all(isinstance(m, GradientCheckpointingLayer) for m in modules)


class _Batch:
    """One padded batch on its way through the layers of a stack.

    Args:
        stack: The stack.
        text: [B, T], where the rows have tokens of their own; None: where the encoder's have.
        source: The batch on its way through the encoder, for a decoder behind it.

    Attributes:
        shown: [B, P + T], what goes through the layers; virtual tokens that see only themselves
            do in the first row of their group alone.
        places: [S], of the packed tokens among B * (P + T).
        layout: Of the packed tokens.
    """

    shown: Tensor
    places: Tensor
    layout: Layout

    def __init__(self, stack: _Stack, text: Tensor | None, source: _Batch | None) -> None:
        self.stack = stack
        self.text = text
        self.source = source
        self._states: Tensor | None = None  # the encoder's, packed
        self._windows: dict[int, Tensor | None] = {}  # of masks, by which they are
        self._inside: AbstractContextManager | None = None

    def before(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, *others = args
        if layer is self.stack.layers[0]:
            self._lay_out()
            hidden = self._packed(hidden)
        named = zip(self.stack.names[1:], others, strict=False)
        others = [self._given(name, value) for name, value in named]
        kwargs = {name: self._given(name, value) for name, value in kwargs.items()}
        owner, source = self.stack.owner, self.layout.source
        self._inside = owner.model.router.use(
            self.layout.groups,
            packed=True,
            within=self._attending,
            source=() if source is None else source.groups,
        )
        self._inside.__enter__()
        return (hidden, *others), {**kwargs, "packed": self.layout}

    def after(self, layer: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        self.close()
        if layer is not self.stack.layers[-1]:
            return out
        if isinstance(out, tuple):
            return (self._padded(out[0]), *out[1:])
        return self._padded(out)

    def close(self) -> None:
        """Leave the layer that is under way."""
        if self._inside is not None:
            inside, self._inside = self._inside, None
            inside.__exit__(None, None, None)

    def _lay_out(self) -> None:
        model, causal, source = self.stack.owner.model, self.stack.causal, self.source
        groups, composed = model.router.groups, model.composed
        alone = len(self.stack.owner.stacks) == 1
        prompts, prefixes = [0] * len(groups), [None] * len(groups)
        if source is not None:
            self.shown = source.shown if self.text is None else self.text
        else:
            assert self.text is not None
            self.shown = self.text if composed is None else composed.extend(self.text, 1, 0)
        lengths = self.shown.sum(1).tolist()
        if composed is not None and (alone or source is not None):
            prefixes = composed.prefixes
        if composed is not None and alone and causal:
            assert self.text is not None
            lengths = self.text.sum(1).tolist()
            prompts = [0 if prompt is None else len(prompt) for prompt in composed.prompts]
            again = self.shown & ~composed.with_room(self.text)  # virtual tokens, but for ...
            again[[group.rows.start for group in groups]] = False  # ... those of first rows
            self.shown = self.shown & ~again
        self.places = self.shown.flatten().nonzero()[:, 0]
        self._count = len(self.places)
        behind = None if source is None else source.layout
        if behind is not None and self._count == behind.length:
            # The router tells the decoder's tokens from the encoder's by their number: one more,
            # at the end of the last row, where nothing looks.
            self.places = torch.cat([self.places, self.places[-1:]])
            lengths[-1] += 1
        self.layout = Layout(lengths, groups, prompts, prefixes, causal, behind)
        self._states = None

    @contextmanager
    def _attending(self) -> Iterator[None]:
        with (
            attending_by_segment(self.stack.owner.configs),
            counting_by_segment(self.stack.counters, self.layout),
        ):
            yield

    def _given(self, name: str, value: Any) -> Any:
        """An argument of a layer on packed rows, from that on padded ones."""
        if isinstance(value, Cache):
            return None
        if "mask" in name:
            alone = self.stack.causal and self.source is None and name == "attention_mask"
            if not alone:
                return None
            if id(value) not in self._windows:  # which layers share
                self._windows[id(value)] = self._window(value)
            return self._windows[id(value)]
        if self.source is not None and name == "encoder_hidden_states":
            if self._states is None:
                self._states = self.source._packed(value)
            return self._states
        if name == "encoder_decoder_position_bias":
            return self.places.new_zeros(1)  # else T5 makes zeros of S times S, used by nothing
        return self._all_packed(value)

    def _window(self, mask: Any) -> Tensor | None:
        """What is left of the mask of a layer that looks back: its window, where rows reach it."""
        if mask is None or isinstance(mask, FakeTensor):
            return None
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            raise Unpackable(f"Layers are handed a mask of kind {type(mask).__name__}.")
        if mask.ndim == 2:  # of the tokens that there are
            return None
        assert self.text is not None
        composed = self.stack.owner.model.composed
        given = self.text if composed is None else composed.extend(self.text, 1, 0)
        last = given.shape[1] - 1 - given.flip(1).long().argmax(1)
        rows = torch.arange(len(last), device=last.device)
        seen_last = mask.expand(len(last), -1, -1, -1)[rows, 0, last, -given.shape[1] :]
        seen = (seen_last if mask.dtype == torch.bool else seen_last == 0).sum(1)
        hides = seen < given.sum(1)
        return window_mark(int(seen[hides].max())) if hides.any() else None

    def _all_packed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            counts_tokens = value.shape[1:2] == self.shown.shape[1:] and value.ndim < 4
            return self._packed(value) if counts_tokens else value
        if isinstance(value, tuple):
            return tuple(self._all_packed(item) for item in value)
        return value

    def _packed(self, value: Tensor) -> Tensor:
        """[B, T, ...] or [1, T, ...] -> [1, S, ...]."""
        rows = value.expand(len(self.shown), *value.shape[1:])
        return rows.flatten(0, 1).index_select(0, self.places)[None]

    def _padded(self, value: Tensor) -> Tensor:
        """[1, S, D] -> [B, T, D], zero at pads."""
        out = value.new_zeros(self.shown.numel(), value.shape[-1])
        out = out.index_copy(0, self.places[: self._count], value[0, : self._count])
        return out.view(*self.shown.shape, -1)
