"""Per-row virtual tokens and prefixes -> one batch, and outputs without them.

A row of a causal model becomes `[prefix | pad | virtual tokens | text]`, padded on the left where
rows have fewer virtual tokens than others; a row of an encoder `[virtual tokens | text | pad]`, as
its positions count from the left. Virtual tokens go in as placeholder ids whose embeddings are
overwritten, so that models which look at ids (for positions, for the last token of a row) see
ids. Prefixes go in as a key-value cache. Everything a caller passes or gets back has the shapes
of the text alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.adapt.prefix import growing_cache, kept_under_checkpointing, reading_cache
from graft.adapt.routing import RowGroup
from graft.adapt.structure import (
    input_embeddings,
    is_causal,
    is_encoder_decoder,
    text_config,
)
from graft.errors import ConfigError
from graft.methods import PrefixAdapter, PromptAdapter

__all__ = ["Composer", "Composition", "VirtualEmbedding"]

IGNORE = -100  # label of a position without a loss


class VirtualEmbedding:
    """Overwrites the embeddings of virtual tokens, through a hook on the input embeddings.

    Attributes:
        composition: The batch under way; None while no virtual tokens are in it.
    """

    def __init__(self, embedding: nn.Module, shared_with_decoder: bool) -> None:
        self.composition: Composition | None = None
        self._once = shared_with_decoder
        self._handle = embedding.register_forward_hook(self._after)

    def detach(self) -> None:
        self._handle.remove()

    def _after(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        batch = self.composition
        # Decoding step by step: the virtual tokens are in the cache, only new ids come in.
        if batch is None or out.shape[1] < batch.length:
            return out
        if self._once:  # the encoder comes first; the decoder's ids are not ours
            self.composition = None
        return batch.write(out)


@dataclass
class Composition:
    """One batch with its virtual tokens.

    Attributes:
        groups: The row groups.
        prompts: Per group its virtual tokens [n, D], or None.
        prefixes: Per group its prefix [L, 2, H, n, K], or None.
        text: T, length of the rows as the caller gave them.
        left: Whether pads stand left of the virtual tokens (causal) or right of the text.
    """

    groups: Sequence[RowGroup]
    prompts: list[Tensor | None]
    prefixes: list[Tensor | None]
    text: int
    left: bool
    prompt_length: int = field(init=False)  # P, columns for virtual tokens in every row
    prefix_length: int = field(init=False)  # N, columns for prefixes in every row

    def __post_init__(self) -> None:
        self.prompt_length = max((len(p) for p in self.prompts if p is not None), default=0)
        self.prefix_length = max((p.shape[3] for p in self.prefixes if p is not None), default=0)

    @property
    def length(self) -> int:
        """Columns of the batch as the model sees it, prefixes aside."""
        return self.prompt_length + self.text

    def _shape(self, index: int) -> tuple[int, int]:
        """Virtual tokens of a group, and the column where they start."""
        prompt = self.prompts[index]
        count = 0 if prompt is None else len(prompt)
        return count, self.prompt_length - count if self.left else 0

    def extend(self, given: Tensor, virtual: Tensor | int, pad: int) -> Tensor:
        """[B, T] -> [B, P + T] with `virtual` ([B] or a number) and `pad` in the new columns."""
        rows = []
        for index, group in enumerate(self.groups):
            count, _ = self._shape(index)
            text = given[group.rows]
            if isinstance(virtual, Tensor):
                fill = virtual[group.rows, None].expand(-1, count)
            else:
                fill = text.new_full((len(text), count), virtual)
            rest = text.new_full((len(text), self.prompt_length - count), pad)
            parts = [rest, fill, text] if self.left else [fill, text, rest]
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def prefix_mask(self, mask: Tensor) -> Tensor:
        """`mask` [B, T] -> [B, N + T]; a group's prefix fills its columns from the right."""
        total = self.prefix_length
        rows = []
        for group, prefix in zip(self.groups, self.prefixes, strict=True):
            count = 0 if prefix is None else prefix.shape[3]
            own = mask.new_zeros(total)
            own[total - count :] = 1
            rows.append(own.expand(group.size, total))
        return torch.cat([torch.cat(rows), mask], dim=1)

    def key_values(self, dtype: torch.dtype) -> Tensor:
        """All prefixes as one [L, 2, B, H, N, K]; rows with less are filled with zeros."""
        like = next(p for p in self.prefixes if p is not None)
        rows = []
        for group, prefix in zip(self.groups, self.prefixes, strict=True):
            own = like.new_zeros(*like.shape[:3], 0, like.shape[4]) if prefix is None else prefix
            padded = F.pad(own, (0, 0, self.prefix_length - own.shape[3], 0)).to(dtype)
            rows.append(padded[:, :, None].expand(-1, -1, group.size, -1, -1, -1))
        return torch.cat(rows, dim=2)

    def write(self, embeddings: Tensor) -> Tensor:
        """`embeddings` [B * f, P + T, D] with the virtual tokens in their columns."""
        out = embeddings.clone()
        factor = len(out) // self.groups[-1].rows.stop
        for index, group in enumerate(self.groups):
            prompt = self.prompts[index]
            if prompt is not None:
                count, start = self._shape(index)
                rows = slice(group.rows.start * factor, group.rows.stop * factor)
                out[rows, start : start + count] = prompt.to(out.dtype)
        return out

    def strip(self, value: Tensor, dim: int = 1) -> Tensor:
        """`value` without the columns of virtual tokens along `dim`."""
        if self.left or not self.prompt_length:
            return value.narrow(dim, self.prompt_length, self.text)
        pieces = value.split([group.size for group in self.groups])
        starts = (self._shape(index)[0] for index in range(len(self.groups)))
        return torch.cat([p.narrow(dim, s, self.text) for p, s in zip(pieces, starts, strict=True)])

    def with_room(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] -> [B, P + T, D] with zeros where virtual tokens and pads go."""
        rows = []
        for index, group in enumerate(self.groups):
            count, start = self._shape(index)
            before = start + count
            rows.append(F.pad(embeddings[group.rows], (0, 0, before, self.prompt_length - before)))
        return torch.cat(rows)

    def with_text(self, composed: Tensor, text: Tensor) -> Tensor:
        """`composed` [B, T or P + T] with the columns of the text replaced by `text` [B, T]."""
        if composed.shape[1] == self.text:
            return text
        columns = self.text_starts(text.device)[:, None] + torch.arange(
            self.text, device=text.device
        )
        return composed.scatter(1, columns, text.expand(len(composed), -1))

    def text_starts(self, device: torch.device) -> Tensor:
        """The column [B] where each row's text starts."""
        return self._per_row([sum(self._shape(i)) for i in range(len(self.groups))], device)

    def prompt_counts(self, device: torch.device) -> Tensor:
        """Virtual tokens [B] of each row."""
        return self._per_row([self._shape(i)[0] for i in range(len(self.groups))], device)

    def prefix_counts(self, device: torch.device) -> Tensor:
        """Prefix length [B] of each row."""
        return self._per_row([0 if p is None else p.shape[3] for p in self.prefixes], device)

    def _per_row(self, numbers: list[int], device: torch.device) -> Tensor:
        sizes = torch.tensor([group.size for group in self.groups], device=device)
        return torch.tensor(numbers, device=device).repeat_interleave(sizes)


class Composer:
    """Composes batches for one base model.

    Args:
        base: The base model, a transformers model with input embeddings.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base: Any = base
        self.encoder_decoder = is_encoder_decoder(base)
        self.causal = is_causal(base)
        self.embedding = VirtualEmbedding(input_embeddings(base), self.encoder_decoder)
        takes = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in takes and not self.encoder_decoder

    def composition(
        self,
        groups: Sequence[RowGroup],
        prompts: Mapping[str, PromptAdapter],
        prefixes: Mapping[str, PrefixAdapter],
        text: int,
    ) -> Composition:
        """Run the prompt and prefix modules of each group's adapters, once."""
        tokens: list[Tensor | None] = []
        caches: list[Tensor | None] = []
        for group in groups:
            own = [prompts[name].embeddings() for name in group.adapters if name in prompts]
            kv = [prefixes[name].key_values() for name in group.adapters if name in prefixes]
            tokens.append(torch.cat(own) if own else None)
            caches.append(torch.cat(kv, dim=3) if kv else None)
        return Composition(groups, tokens, caches, text, left=self.causal)

    @contextmanager
    def writing(self, batch: Composition, given: Mapping[str, Any]) -> Iterator[None]:
        """Write the virtual tokens of `batch` over their placeholders inside the block."""
        from_ids = given.get("input_ids") is not None and not _continues(given)
        if batch.prompt_length and from_ids:
            self.embedding.composition = batch
        kept = kept_under_checkpointing(self.base) if batch.prefix_length else nullcontext()
        try:
            with kept:
                yield
        finally:
            self.embedding.composition = None

    def forward_inputs(self, batch: Composition, given: dict[str, Any]) -> dict[str, Any]:
        """The base model's arguments for one forward over `batch`, from the caller's."""
        out = dict(given)
        continues = _continues(given)
        mask = self._virtual_tokens(batch, out, continues)
        if batch.prefix_length:
            mask = self._prefix_mask(batch, out, mask)
            if not continues:
                kv = batch.key_values(self.base.dtype)
                if self._keeps_cache(out):
                    out["cache"] = growing_cache(kv, self.encoder_decoder, _cache(given))
                else:
                    out["cache"] = reading_cache(kv, self.encoder_decoder)
        out["attention_mask"] = mask
        if not self.encoder_decoder:
            self._positions(batch, out, mask, batch.text if continues else batch.length)
        return out

    def _keeps_cache(self, given: Mapping[str, Any]) -> bool:
        """Whether the caller gets a cache to go on with; in training only where it asks for one."""
        if not (self.causal or self.encoder_decoder):
            return False
        asked = given.get("use_cache")
        if self.base.training and torch.is_grad_enabled():
            return bool(asked) and not self.base.is_activation_checkpointing
        return bool(getattr(text_config(self.base), "use_cache", False) if asked is None else asked)

    def generation_inputs(
        self, batch: Composition, given: dict[str, Any], copies: int
    ) -> dict[str, Any]:
        """The arguments of the base model's `generate`.

        Args:
            batch: The composed rows.
            given: The caller's arguments.
            copies: Sequences per row (beams, or sequences to return), for the cache.
        """
        out = dict(given)
        mask = self._virtual_tokens(batch, out, continues=False)
        if batch.prefix_length:
            kv = batch.key_values(self.base.dtype).repeat_interleave(copies, dim=2)
            out["cache"] = growing_cache(kv, self.encoder_decoder)
            # transformers skips what the cache covers, so ids stand there for the prefix.
            if self.encoder_decoder:
                start = out.pop("decoder_input_ids", None)
                if start is None:
                    first = self.base.generation_config.decoder_start_token_id
                    start = mask.new_full((len(mask), 1), first)
                out["decoder_attention_mask"] = batch.prefix_mask(torch.ones_like(start))
                out["decoder_input_ids"] = F.pad(start, (batch.prefix_length, 0))
            else:
                mask = batch.prefix_mask(mask)
                for name in ("input_ids", "inputs_embeds"):
                    if out.get(name) is not None:
                        out[name] = _padded_front(out[name], batch.prefix_length)
        out["attention_mask"] = mask
        return out

    def _virtual_tokens(self, batch: Composition, out: dict[str, Any], continues: bool) -> Tensor:
        """Make room for virtual tokens in everything of length T; the new mask [B, P + T]."""
        ids, embeds = out.get("input_ids"), out.get("inputs_embeds")
        shown = ids if ids is not None else embeds
        assert shown is not None
        mask = out.get("attention_mask")
        if mask is None:
            mask = torch.ones(shown.shape[:2], dtype=torch.long, device=shown.device)
        if mask.ndim != 2:
            raise ConfigError(f"attention_mask must be [rows, tokens], not {tuple(mask.shape)}.")
        if not batch.prompt_length:
            return mask
        extended = batch.extend(mask, 1, 0)
        if continues:
            return extended
        if ids is not None:
            # A placeholder that is in the row already: penalties on repetition do not notice it.
            first = ids.gather(1, mask.argmax(1, keepdim=True))[:, 0]
            pad = getattr(self.base.config, "pad_token_id", None)
            out["input_ids"] = batch.extend(ids, first, 0 if pad is None else pad)
        if embeds is not None:
            out["inputs_embeds"] = batch.write(batch.with_room(embeds))
        if out.get("token_type_ids") is not None:
            out["token_type_ids"] = batch.extend(out["token_type_ids"], 0, 0)
        labels = out.get("labels")
        if labels is not None and labels.shape == mask.shape and not self.encoder_decoder:
            out["labels"] = batch.extend(labels, IGNORE, IGNORE)
        for name in ("start_positions", "end_positions"):
            if out.get(name) is not None:
                out[name] = out[name] + batch.text_starts(out[name].device)
        return extended

    def _prefix_mask(self, batch: Composition, out: dict[str, Any], mask: Tensor) -> Tensor:
        if not self.encoder_decoder:
            return batch.prefix_mask(mask)
        name = "decoder_attention_mask"  # the prefix is the decoder's
        if out.get(name) is None:
            target = out.get("decoder_input_ids")
            target = out.get("labels") if target is None else target
            assert target is not None
            out[name] = torch.ones_like(target)
        out[name] = batch.prefix_mask(out[name])
        return mask

    def _positions(self, batch: Composition, out: dict[str, Any], mask: Tensor, width: int) -> None:
        prefixes = batch.prefix_counts(mask.device)
        given = out.get("position_ids")
        if not self._takes_positions:
            return
        if self.causal:
            # The one line that makes left padding right: real tokens are counted, pads are not.
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        elif given is not None or len(set(prefixes.tolist())) > 1:
            positions = torch.arange(width, device=mask.device) + prefixes[:, None]
        else:
            return  # an encoder counts by itself, in its own way
        if given is not None:
            moved = given + (batch.prompt_counts(mask.device) + prefixes)[:, None]
            positions = batch.with_text(positions, moved)
        out["position_ids"] = positions


def _continues(given: Mapping[str, Any]) -> bool:
    """Whether the rows have begun in a forward before: their virtual tokens are in the cache."""
    cache = _cache(given)
    return cache is not None and cache.get_seq_length() > 0


def _cache(given: Mapping[str, Any]) -> Any:
    """The caller's cache, by transformers' newer or older name."""
    return given.get("cache", given.get("past_key_values"))


def _padded_front(value: Tensor, count: int) -> Tensor:
    """ids [B, T] with the first one repeated in front, or embeddings [B, T, D] with zeros."""
    if value.ndim == 3:
        return F.pad(value, (0, 0, count, 0))
    return torch.cat([value[:, :1].expand(-1, count), value], dim=1)
