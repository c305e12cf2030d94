"""Where the rows of a packed batch stand, and what each of them sees.

A packed batch is one row of S tokens: for each row group its virtual tokens, once for all its
rows, and then its rows one behind the other. The virtual tokens of a causal decoder see only
themselves, so their keys and values are the same for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graft.adapt.routing import RowGroup
from graft.packing.segments import Reading
from graft.packing.varlen import Spans

__all__ = ["Layout", "Segment"]


@dataclass(frozen=True)
class Segment:
    """Tokens that attend to each other: a row, or the virtual tokens of a group.

    Attributes:
        tokens: Its place among the S tokens.
        prompt: Index of the segment of virtual tokens that it sees besides; None: it sees none.
        prefix: Index of the prefix that it sees besides; None: it sees none.
        is_prompt: Whether it is virtual tokens.
    """

    tokens: slice
    prompt: int | None
    prefix: int | None
    is_prompt: bool = False

    @property
    def length(self) -> int:
        return self.tokens.stop - self.tokens.start


class Layout:
    """The segments of one packed batch.

    Args:
        lengths: Tokens of each row, in the order of the groups.
        groups: The row groups.
        prompts: Virtual tokens of each group that stand in the batch.
        prefixes: Keys and values of each group [L, 2, H, N, K], or None.
        causal: Whether each token sees only those before it.
        source: The encoder's packed rows, where this is the decoder behind it.

    Attributes:
        segments: In order, without gaps.
        groups: The row groups as groups of tokens.
        prefixes: Each with keys and values of every layer [2, H, N, K].
        masks: What causality hides, filled as attention needs it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        groups: Sequence[RowGroup],
        prompts: Sequence[int],
        prefixes: Sequence[Tensor | None],
        causal: bool = True,
        source: Layout | None = None,
    ) -> None:
        self.causal = causal
        self.source = source
        self.segments: list[Segment] = []
        self.groups: list[RowGroup] = []
        self.prefixes: list[tuple[Tensor, ...]] = []
        self.masks: dict[Any, Tensor] = {}
        self._spans: dict[bool, Spans] = {}
        for group, prompt, prefix in zip(groups, prompts, prefixes, strict=True):
            start, shown, front = self.length, None, None
            if prefix is not None:
                front = len(self.prefixes)
                self.prefixes.append(prefix.unbind())
            if prompt:
                shown = len(self.segments)
                self._add(prompt, None, front, is_prompt=True)
            for length in lengths[group.rows]:
                self._add(length, shown, front)
            self.groups.append(RowGroup(slice(start, self.length), group.adapters))

    def _add(
        self, length: int, prompt: int | None, prefix: int | None, is_prompt: bool = False
    ) -> None:
        tokens = slice(self.length, self.length + length)
        self.segments.append(Segment(tokens, prompt, prefix, is_prompt))

    @property
    def length(self) -> int:
        """S, tokens in the batch."""
        return self.segments[-1].tokens.stop if self.segments else 0

    def first_position(self, segment: Segment) -> int:
        """Position of the first token of `segment`, behind what it sees besides."""
        return self._virtual(segment) + self._prefix(segment)

    def _virtual(self, segment: Segment) -> int:
        """Virtual tokens that `segment` sees besides itself."""
        return 0 if segment.prompt is None else self.segments[segment.prompt].length

    def _prefix(self, segment: Segment) -> int:
        """Length of the prefix that `segment` sees."""
        return 0 if segment.prefix is None else self.prefixes[segment.prefix][0].shape[2]

    @property
    def longest(self) -> int:
        """Most tokens of a segment together with the virtual tokens that it sees."""
        return max(self._virtual(segment) + segment.length for segment in self.segments)

    @property
    def longest_prefix(self) -> int:
        """Length of the longest prefix."""
        return max(map(self._prefix, self.segments))

    @cached_property
    def own_readings(self) -> list[Reading]:
        """What attention inside the segments reads: prefix, virtual tokens and themselves.

        A bias of distances is the longest segment's, behind the longest prefix; that of another
        begins behind its virtual tokens, and as far from the left as its prefix is shorter.
        """
        most, out = self.longest_prefix, []
        for segment in self.segments:
            shown = [] if segment.prompt is None else [self.segments[segment.prompt].tokens]
            corner = self._virtual(segment), most - self._prefix(segment)
            keys = (*shown, segment.tokens)
            out.append(Reading(segment.tokens, keys, segment.prefix, corner))
        return out

    @cached_property
    def source_readings(self) -> list[Reading]:
        """What cross attention reads: each row's own row of the encoder."""
        assert self.source is not None
        pairs = zip(self.segments, self.source.segments, strict=True)
        return [Reading(own.tokens, (its.tokens,)) for own, its in pairs]

    def spans(self, of_source: bool, device: torch.device) -> Spans:
        """What the kernel of a GPU takes, for `source_readings` or `own_readings`; made once."""
        if of_source not in self._spans:
            readings, keys, fronts = self.own_readings, self.length, self.prefixes
            if of_source:
                assert self.source is not None
                readings, keys, fronts = self.source_readings, self.source.length, []
            lengths = [front[0].shape[2] for front in fronts]
            self._spans[of_source] = Spans.of(readings, keys, lengths, device)
        return self._spans[of_source]
