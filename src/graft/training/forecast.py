"""What a plan says of a run before it starts; training compares it with what it measures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Forecast"]


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to need.

    Attributes:
        peak_bytes: Most bytes in use at a time: base model, adapters and all of a step.
        step_seconds: Of one optimizer step, on average.
        low: The least that may be.
        high: The most.
        cheaper: Changes that need less memory, in the order to try them, each a line such as
            `train.gradient_checkpointing=true (2.1 GiB, 1.3x the time)`.
    """

    peak_bytes: int
    step_seconds: float
    low: float
    high: float
    cheaper: tuple[str, ...] = ()
