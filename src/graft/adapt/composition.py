"""One batch with its virtual tokens: where they stand, and every tensor with room for them.

A row of a causal model is `[prefix | pad | virtual tokens | text]`: its pads, the caller's among
them, stand left of the virtual tokens, so that these touch the text whatever window the model
looks through. A row of an encoder is `[prefix | virtual tokens | text | pad]`, as its positions
count from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.adapt.routing import RowGroup

__all__ = ["Composition"]


@dataclass
class Composition:
    """One batch with its virtual tokens.

    Attributes:
        groups: The row groups.
        prompts: Per group its virtual tokens [n, D], or None.
        prefixes: Per group its prefix [L, 2, H, n, K], or None.
        text: T, length of the rows as the caller gave them.
        left: Whether pads stand left of the virtual tokens (causal) or right of the text.
        pads: [B], pads at the left end of each row as the caller gave it; None: none.
        cache: The prefixes as the cache that the base model gets, once it has been made.
    """

    groups: Sequence[RowGroup]
    prompts: list[Tensor | None]
    prefixes: list[Tensor | None]
    text: int
    left: bool
    pads: Tensor | None = None
    cache: Any = None
    prompt_length: int = field(init=False)  # P, columns for virtual tokens in every row
    prefix_length: int = field(init=False)  # N, columns for prefixes in every row

    def __post_init__(self) -> None:
        self.prompt_length = max((len(p) for p in self.prompts if p is not None), default=0)
        self.prefix_length = max(self.prefix_lengths)

    @property
    def length(self) -> int:
        """Columns of the batch as the model sees it, prefixes aside."""
        return self.prompt_length + self.text

    def _count(self, index: int) -> int:
        """Virtual tokens of a group."""
        prompt = self.prompts[index]
        return 0 if prompt is None else len(prompt)

    def _places(self, index: int, device: torch.device, copies: int = 1) -> tuple[Tensor, Tensor]:
        """Rows [n, 1] and columns [n, count] of a group's virtual tokens in [B * copies, P + T]."""
        own, count = self.groups[index].rows, self._count(index)
        rows = torch.arange(own.start * copies, own.stop * copies, device=device)[:, None]
        columns = torch.arange(count, device=device).expand(len(rows), -1)
        if self.left:
            columns = columns + self.prompt_length - count
        if self.pads is not None:
            columns = columns + self.pads[rows // copies]
        return rows, columns

    def extend(self, given: Tensor, virtual: Tensor | int, pad: int) -> Tensor:
        """[B, T] -> [B, P + T] with `virtual` ([B] or a number) and `pad` in the new columns."""
        out = self.with_room(given, pad)
        for index, group in enumerate(self.groups):
            fill = virtual[group.rows, None] if isinstance(virtual, Tensor) else virtual
            out[self._places(index, out.device)] = fill
        return out

    def with_room(self, given: Tensor, pad: int = 0) -> Tensor:
        """[B, T, ...] -> [B, P + T, ...] with `pad` where virtual tokens and pads go."""
        rows = []
        for index, group in enumerate(self.groups):
            before = self.prompt_length if self.left else self._count(index)
            sides = (before, self.prompt_length - before)
            behind = (0, 0) * (given.ndim - 2)  # F.pad counts from the last axis
            rows.append(F.pad(given[group.rows], (*behind, *sides), value=pad))
        return torch.cat(rows)

    def prefix_mask(self, mask: Tensor) -> Tensor:
        """`mask` [B, T] -> [B, N + T]; a group's prefix fills its columns from the right."""
        total = self.prefix_length
        rows = []
        for group, count in zip(self.groups, self.prefix_lengths, strict=True):
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
        """`embeddings` [B * f, P + T, D] with the virtual tokens in their places."""
        out = embeddings.clone()
        copies = len(out) // self.groups[-1].rows.stop
        for index, prompt in enumerate(self.prompts):
            if prompt is not None:
                out[self._places(index, out.device, copies)] = prompt.to(out.dtype)
        return out

    def strip(self, value: Tensor, dim: int = 1) -> Tensor:
        """`value` without the columns of virtual tokens along `dim`."""
        if self.left or not self.prompt_length:
            return value.narrow(dim, self.prompt_length, self.text)
        copies = len(value) // self.groups[-1].rows.stop  # beams
        pieces = value.split([group.size * copies for group in self.groups])
        starts = (self._count(index) for index in range(len(self.groups)))
        return torch.cat([p.narrow(dim, s, self.text) for p, s in zip(pieces, starts, strict=True)])

    def with_text(self, composed: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """`composed` [B, T or P + T] with `text` [B, T] where `real` [B, T] says so."""
        columns = torch.arange(self.text, device=text.device).expand(len(composed), -1)
        if composed.shape[1] > self.text:
            counts = self.prompt_counts(text.device)
            columns = columns + (self.prompt_length if self.left else counts[:, None])
        text = torch.where(real, text, composed.gather(1, columns))
        return composed.scatter(1, columns, text)

    def prompt_counts(self, device: torch.device) -> Tensor:
        """Virtual tokens [B] of each row."""
        return self._per_row([self._count(i) for i in range(len(self.groups))], device)

    def prefix_counts(self, device: torch.device) -> Tensor:
        """Prefix length [B] of each row."""
        return self._per_row(self.prefix_lengths, device)

    @property
    def prefix_lengths(self) -> list[int]:
        """Prefix length of each group."""
        return [0 if prefix is None else prefix.shape[3] for prefix in self.prefixes]

    def _per_row(self, numbers: list[int], device: torch.device) -> Tensor:
        sizes = torch.tensor([group.size for group in self.groups], device=device)
        return torch.tensor(numbers, device=device).repeat_interleave(sizes)
