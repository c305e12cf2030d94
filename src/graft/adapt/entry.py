"""Where virtual tokens enter the base model: hooks on its input embeddings and its layers.

The hooks stand for good, as compiled code does not see later ones; they act on a batch under way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

from graft.adapt.composition import Composition
from graft.adapt.recomputation import kept_under_checkpointing
from graft.adapt.structure import cache_owner, input_embeddings, no_prefix, text_config
from graft.errors import ConfigError

__all__ = ["Entry"]


class Entry:
    """The hooks of one base model.

    Args:
        base: A transformers model.

    Attributes:
        batch: What is being let in; None: nothing.
    """

    def __init__(self, base: nn.Module) -> None:
        owner = cache_owner(base)
        self._base: Any = base
        self.batch: Composition | None = None
        self._writes = self._again = self._masks = False
        self._handles = [
            input_embeddings(base).register_forward_hook(self._after_embeddings),
            owner.register_forward_pre_hook(self._before_layers, with_kwargs=True),
        ]
        self._names = list(_arguments(owner))
        self._counters = _counters(owner)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def open(
        self, batch: Composition, *, writes: bool, again: bool, masks: bool, counts: bool
    ) -> Iterator[None]:
        """Let `batch` in, inside the block.

        Args:
            batch: The rows.
            writes: Whether virtual tokens are to be written over the embeddings of ids.
            again: Whether that holds for all embeddings, as each step starts from the ids again;
                else for the next ones only: what follows is a decoder's, or goes on from a cache.
            masks: Whether the attention mask lacks the prefix, which heads shall not see.
            counts: Whether the base model itself counts positions, and prefixes differ in length.
        """
        self.batch, self._masks = batch, masks
        self._writes, self._again = writes and batch.prompt_length > 0, again
        try:
            with ExitStack() as stack:
                if batch.prefix_length:
                    stack.enter_context(kept_under_checkpointing(self._base))
                for module, way in self._counters if counts else ():
                    stack.enter_context(_around(module, partial(way, batch)))
                yield
        finally:
            self.batch, self._writes = None, False

    def _after_embeddings(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        if self.batch is None or not self._writes:
            return out
        self._writes = self._again
        return self.batch.write(out)

    def _before_layers(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        batch = self.batch
        if batch is None or not batch.prefix_length:
            return None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if batch.cache is not None:  # heads do not all pass one on
            given["cache"] = batch.cache
        shown = given.get("input_ids")
        rows, tokens = (given["inputs_embeds"] if shown is None else shown).shape[:2]
        seen = given["cache"].get_seq_length() + tokens
        device = self._base.device
        if self._masks:
            mask = given.get("attention_mask")
            if isinstance(mask, dict):
                why = "makes masks in front of its language model, where a prefix has no place"
                raise no_prefix(self._base, why)
            if mask is None:
                mask = torch.ones(rows, seen - batch.prefix_length, dtype=torch.long, device=device)
            given["attention_mask"] = batch.prefix_mask(mask)
        window = getattr(text_config(self._base), "sliding_window", None)
        if window is not None and seen > window:
            like = torch.empty(rows, tokens, 0, dtype=self._base.dtype, device=device)
            given["attention_mask"] = self._prefix_in_sight(batch, like, given)
        return (), given

    def _prefix_in_sight(self, batch: Composition, like: Tensor, kwargs: dict[str, Any]) -> Any:
        """Masks by which every token sees the prefix, however far a layer's window slides."""
        prefix, config = batch.prefix_length, text_config(self._base)
        masks = create_masks_for_generate(
            config=config,
            inputs_embeds=like,
            attention_mask=kwargs.get("attention_mask"),
            cache=kwargs["cache"],
            or_mask_function=lambda row, head, query, key: key < prefix,
        )
        for made in masks.values() if isinstance(masks, dict) else [masks]:
            if made is None or made.ndim != 4:
                raise ConfigError(
                    "A prefix would slide out of this model's attention window under "
                    f"{config._attn_implementation}; load the base model with "
                    "attn_implementation='sdpa' or 'eager'."
                )
        return masks


def _counters(owner: nn.Module) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
    """The modules that count positions from what the cache holds, and how each of them does."""
    found: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in owner.modules():
        if "cache_length" not in _arguments(module):
            continue
        tables = {name: m for name, m in module.named_children() if isinstance(m, nn.Embedding)}
        found |= {table: _shift for name, table in tables.items() if "position" in name}
        if not tables:
            found[module] = _count
    return list(found.items())


def _count(batch: Composition, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """BART's way: embeddings of the positions behind what a cache of `cache_length` holds."""
    given = inspect.signature(forward).bind(*args, **kwargs).arguments
    positions = given.get("position_ids")
    shown = next((v for v in given.values() if isinstance(v, Tensor) and v.ndim > 1), None)
    copies = 1 if shown is None else len(shown) // batch.groups[-1].rows.stop
    out = []
    for group, length in zip(batch.groups, batch.prefix_lengths, strict=True):
        lacking = batch.prefix_length - length
        own = {**given, "cache_length": given["cache_length"] - lacking}
        if positions is not None:
            own["position_ids"] = positions - lacking
        part = forward(**own)  # [B, T, D], or [1, T, D] or [T, D] for all
        rows = slice(group.rows.start * copies, group.rows.stop * copies)
        part = part[rows] if part.ndim == 3 and len(part) > 1 else part
        out.append(part.expand(rows.stop - rows.start, *part.shape[-2:]))
    return torch.cat(out)


def _shift(batch: Composition, forward: Callable[..., Tensor], positions: Tensor) -> Tensor:
    """BERT's way: a table of positions that were counted behind the longest prefix."""
    lacking = batch.prefix_length - batch.prefix_counts(positions.device)
    return forward((positions - lacking[:, None]).clamp(min=0))


def _arguments(module: nn.Module) -> dict[str, Any]:
    return dict(inspect.signature(module.forward).parameters)


@contextmanager
def _around(module: Any, call: Callable[..., Tensor]) -> Iterator[None]:
    """Call `call(forward, *args)` where `module.forward(*args)` is called, inside the block."""
    own = module.__dict__.get("forward")
    module.forward = partial(call, module.forward)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
