"""Per-row virtual tokens and prefixes -> the arguments of the base model (see `composition`).

Virtual tokens go in as placeholder ids whose embeddings are overwritten, so that models which look
at ids (for positions, for the last token of a row) see ids. Prefixes go in as a key-value cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.adapt.composition import Composition
from graft.adapt.entry import Entry
from graft.adapt.prefix import growing_cache, reading_cache
from graft.adapt.routing import RowGroup
from graft.adapt.structure import (
    is_causal,
    is_encoder_decoder,
    text_config,
)
from graft.errors import ConfigError
from graft.methods import PrefixAdapter, PromptAdapter

__all__ = ["IGNORE", "SPAN", "Composer"]

IGNORE = -100  # label of a position without a loss
SPAN = ("start_positions", "end_positions")  # labels of question answering


class Composer:
    """Composes batches for one base model.

    Args:
        base: The base model, a transformers model with input embeddings.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base: Any = base
        self.encoder_decoder = is_encoder_decoder(base)
        self.causal = is_causal(base)
        self.entry = Entry(base)
        takes = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in takes and not self.encoder_decoder

    def composition(
        self,
        groups: Sequence[RowGroup],
        prompts: Mapping[str, PromptAdapter],
        prefixes: Mapping[str, PrefixAdapter],
        text: int,
        drawing: Callable[[str], AbstractContextManager],
    ) -> Composition:
        """Run the prompt and prefix modules of each group's adapters, once.

        Args:
            groups: The row groups.
            prompts: The prompts by adapter.
            prefixes: The prefixes by adapter.
            text: Columns of the batch.
            drawing: What surrounds the modules of an adapter: its random numbers.
        """

        def made(name: str, make: Callable[[], Tensor]) -> Tensor:
            with drawing(name):
                return make()

        tokens: list[Tensor | None] = []
        caches: list[Tensor | None] = []
        for group in groups:
            own = [made(n, prompts[n].embeddings) for n in group.adapters if n in prompts]
            kv = [made(n, prefixes[n].key_values) for n in group.adapters if n in prefixes]
            tokens.append(torch.cat(own) if own else None)
            caches.append(torch.cat(kv, dim=3) if kv else None)
        return Composition(groups, tokens, caches, text, left=self.causal)

    @contextmanager
    def entering(
        self,
        batch: Composition,
        given: Mapping[str, Any],
        generates: bool = False,
        again: bool = False,
    ) -> Iterator[None]:
        """Let virtual tokens and prefixes of `batch` into the base model inside the block.

        Args:
            batch: What `forward_inputs` or `generation_inputs` has made room for.
            given: The caller's arguments.
            generates: Whether it is `generate` that runs in the block.
            again: Whether every step of it starts from the ids, without a cache.
        """
        from_ids = given.get("input_ids") is not None and not self._continues(given)
        counts = not self.causal and given.get("position_ids") is None
        uneven = len(set(batch.prefix_lengths)) > 1
        if counts and uneven and given.get("input_ids") is None and not self.encoder_decoder:
            raise ConfigError(
                "Rows with different prefixes need input_ids or position_ids in an encoder: "
                "models differ in how they count the positions of embeddings."
            )
        with self.entry.open(
            batch, writes=from_ids, again=again, masks=not generates, counts=counts and uneven
        ):
            yield

    def forward_inputs(self, batch: Composition, given: dict[str, Any]) -> dict[str, Any]:
        """The base model's arguments for one forward over `batch`, from the caller's."""
        out = dict(given)
        continues = self._continues(given)
        mask = out["attention_mask"] = self._virtual_tokens(batch, out, continues)
        if batch.prefix_length and _past(given) == 0:
            empty = out.pop("cache", out.pop("past_key_values", None))
            kv = batch.key_values(self.base.dtype)
            if self._keeps_cache(out):
                batch.cache = growing_cache(kv, self.encoder_decoder, empty)
            else:
                batch.cache = reading_cache(kv, self.encoder_decoder)
        if not self.encoder_decoder:
            width = batch.text if continues else batch.length
            self._positions(batch, out, mask, width, given.get("attention_mask"))
        return out

    def _continues(self, given: Mapping[str, Any]) -> bool:
        """Whether the virtual tokens are in the caller's cache already, from a forward before.

        In an encoder-decoder they never are: the cache is the decoder's.
        """
        return _past(given) > 0 and not self.encoder_decoder

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
                out["decoder_input_ids"] = _padded_front(start, batch.prefix_length)
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
            past = _past(out) - batch.prefix_length - batch.prompt_length if continues else 0
            size = (shown.shape[0], past + shown.shape[1])
            mask = torch.ones(size, dtype=torch.long, device=shown.device)
        if mask.ndim != 2:
            raise ConfigError(f"attention_mask must be [rows, tokens], not {tuple(mask.shape)}.")
        if not batch.prompt_length:
            return mask
        if batch.left:
            batch.pads = (mask.cumsum(1) == 0).sum(1)
        extended = batch.extend(mask, 1, 0)
        if continues:
            return extended
        if ids is not None:
            # A placeholder that is in the row already: penalties on repetition do not notice it.
            first = ids.gather(1, mask.argmax(1, keepdim=True))[:, 0]
            if batch.left:
                front = first[:, None].expand(-1, batch.prompt_length)
                out["input_ids"] = torch.cat([front, ids], dim=1)
            else:
                pad = getattr(self.base.config, "pad_token_id", None)
                out["input_ids"] = batch.extend(ids, first, 0 if pad is None else pad)
        if embeds is not None:
            out["inputs_embeds"] = batch.write(batch.with_room(embeds))
        if out.get("token_type_ids") is not None:
            out["token_type_ids"] = batch.extend(out["token_type_ids"], 0, 0)
        labels = out.get("labels")
        if labels is not None and labels.shape == mask.shape and not self.encoder_decoder:
            out["labels"] = batch.extend(labels, IGNORE, IGNORE)
        for name in SPAN:  # its loss is a choice among the positions of the text alone
            out.pop(name, None)
        kept = out.get("logits_to_keep")
        if isinstance(kept, Tensor):
            out["logits_to_keep"] = kept + batch.prompt_length
        return extended

    def decoder_ids(self, given: Mapping[str, Any]) -> Tensor | None:
        """What the decoder of an encoder-decoder reads; None where that is the encoder's ids."""
        labels = given.get("labels")
        read = given.get("decoder_input_ids")
        if read is None:
            read = given.get("decoder_inputs_embeds")
            read = None if read is None else read[..., 0]
        return labels if read is None and labels is not None and labels.ndim > 1 else read

    def _positions(
        self,
        batch: Composition,
        out: dict[str, Any],
        mask: Tensor,
        width: int,
        text_mask: Tensor | None,
    ) -> None:
        given = out.get("position_ids")
        if not self._takes_positions or (given is None and not self.causal):
            return  # an encoder counts by itself, in its own way
        prefixes = batch.prefix_counts(mask.device)
        # The one line that makes left padding right: real tokens are counted, pads are not.
        positions = (mask.cumsum(-1) + prefixes[:, None] - 1).clamp(min=0)[:, -width:]
        if given is not None:
            moved = given + (batch.prompt_counts(mask.device) + prefixes)[:, None]
            real = mask if text_mask is None else text_mask
            positions = batch.with_text(positions, moved, real[:, -batch.text :].bool())
        out["position_ids"] = positions


def _past(given: Mapping[str, Any]) -> int:
    """Tokens in the caller's cache, which has a newer and an older name in transformers."""
    cache = given.get("cache", given.get("past_key_values"))
    return 0 if cache is None else int(cache.get_seq_length())


def _padded_front(value: Tensor, count: int) -> Tensor:
    """ids [B, T] with the first one repeated in front, or embeddings [B, T, D] with zeros."""
    if value.ndim == 3:
        return F.pad(value, (0, 0, count, 0))
    return torch.cat([value[:, :1].expand(-1, count), value], dim=1)
