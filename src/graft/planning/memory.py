"""The bytes of a step, by what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KINDS", "Memory", "Moment"]

KINDS = (
    "weights",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "recomputation",
    "prefix",
    "workspace",
)


@dataclass(frozen=True)
class Moment:
    """A moment of a step.

    Attributes:
        phase: What is under way, such as "backward, layer 3 of 24".
        bytes: Bytes that live, by kind; all of `KINDS`.
    """

    phase: str
    bytes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Memory:
    """What a step holds when it holds most; all bytes.

    Attributes:
        weights: The base model, with its buffers.
        adapter: What is trained; 0 where that is the base model itself.
        gradients: Of what is trained.
        optimizer: AdamW's two moments.
        activations: What the forward pass keeps for the backward pass.
        logits: Logits, their gradient and the loss.
        recomputation: What checkpointed layers compute again.
        prefix: Virtual tokens, as embeddings or as keys and values, and what makes them.
        workspace: All else: results on their way, and the batch.
        peak: The sum.
        where: When that is, in words.
        timeline: The course of the step; the highest of these moments is the peak.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    recomputation: int
    prefix: int
    workspace: int
    peak: int
    where: str
    timeline: tuple[Moment, ...]

    @classmethod
    def of(cls, timeline: tuple[Moment, ...]) -> Memory:
        """The memory of a step with this course."""
        highest = max(timeline, key=lambda moment: moment.total)
        return cls(**highest.bytes, peak=highest.total, where=highest.phase, timeline=timeline)
