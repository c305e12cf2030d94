"""One batch with its virtual tokens: where they stand, and every tensor with room for them.

A row of a causal model is `[prefix | pad | virtual tokens | text]`, padded on the left where rows
have fewer virtual tokens than others; a row of an encoder `[prefix | virtual tokens | text | pad]`,
as its positions count from the left.
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
        cache: The prefixes as the cache that the base model gets, once it has been made.
    """

    groups: Sequence[RowGroup]
    prompts: list[Tensor | None]
    prefixes: list[Tensor | None]
    text: int
    left: bool
    cache: Any = None
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
