"""Where the rows of a packed batch stand, and what each of them sees.

A packed batch is one row of S tokens: for each row group its virtual tokens, once for all its
rows, and then its rows one behind the other. The virtual tokens of a causal decoder see only
themselves, so their keys and values are the same for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from graft.adapt.routing import RowGroup

__all__ = ["Layout", "Segment"]


@dataclass(frozen=True)
class Segment:
    """Tokens that attend to each other: a row, or the virtual tokens of a group.

    Attributes:
        tokens: Its place among the S tokens.
        prompt: Index of the segment of virtual tokens that it sees besides; None: it sees none.
        prefix: Keys and values that it sees besides, [L, 2, H, N, K], or None.
        is_prompt: Whether it is virtual tokens.
    """

    tokens: slice
    prompt: int | None
    prefix: Tensor | None
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
        for group, prompt, prefix in zip(groups, prompts, prefixes, strict=True):
            start, shown = self.length, None
            if prompt:
                shown = len(self.segments)
                self._add(prompt, None, prefix, is_prompt=True)
            for length in lengths[group.rows]:
                self._add(length, shown, prefix)
            self.groups.append(RowGroup(slice(start, self.length), group.adapters))

    def _add(
        self, length: int, prompt: int | None, prefix: Tensor | None, is_prompt: bool = False
    ) -> None:
        tokens = slice(self.length, self.length + length)
        self.segments.append(Segment(tokens, prompt, prefix, is_prompt))

    @property
    def length(self) -> int:
        """S, tokens in the batch."""
        return self.segments[-1].tokens.stop if self.segments else 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each segment."""
        return [segment.length for segment in self.segments]

    def seen_before(self, segment: Segment) -> tuple[int, int]:
        """Virtual tokens and prefix that `segment` sees besides itself."""
        prefix = 0 if segment.prefix is None else segment.prefix.shape[3]
        return 0 if segment.prompt is None else self.segments[segment.prompt].length, prefix

    def first_position(self, segment: Segment) -> int:
        """Position of the first token of `segment`, behind what it sees besides."""
        return sum(self.seen_before(segment))

    @property
    def longest(self) -> int:
        """Most tokens of a segment together with the virtual tokens that it sees."""
        return max(self.seen_before(own)[0] + own.length for own in self.segments)

    @property
    def longest_prefix(self) -> int:
        """Length of the longest prefix."""
        return max(self.seen_before(own)[1] for own in self.segments)
