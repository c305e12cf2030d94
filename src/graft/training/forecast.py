"""What a plan says of a run before it starts, and how the run compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graft.download import size_text
from graft.training.memory import peak_memory_gib
from graft.training.report import Callback

if TYPE_CHECKING:
    from graft.training.loop import Loop

__all__ = ["Forecast", "Watch"]

_WARM_UP, _COMPARED = 1, 2  # rounds before, and in, the first measurement


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


class Watch(Callback):
    """Measures a run and, where there is a forecast, compares after two rounds.

    Args:
        loop: The run.
        resident_bytes: Memory of the process before the base model was loaded, which on a CPU is
            no part of what the run needs.
        forecast: What was planned.
    """

    def __init__(self, loop: Loop, resident_bytes: int, forecast: Forecast | None) -> None:
        self.loop, self.forecast = loop, forecast
        self.resident_bytes = resident_bytes
        self._before = self._last = loop.rounds
        self._began = 0.0

    def on_step(self, step: int) -> None:
        if self.loop.rounds == self._last:  # another adapter has told of this round
            return
        self._last = self.loop.rounds
        done = self._last - self._before
        if self.forecast is None or done not in (_WARM_UP, _WARM_UP + _COMPARED):
            return
        if self.loop.device.type != "cpu":
            torch.accelerator.synchronize()
        if done == _WARM_UP:
            self._began = self.loop.seconds
        else:
            self._compare(self.forecast, (self.loop.seconds - self._began) / _COMPARED)

    def _compare(self, forecast: Forecast, seconds: float) -> None:
        peak = self.peak_bytes
        measured = "" if peak is None else f", measured {size_text(peak)}"
        self.loop.note(
            f"memory: planned {size_text(forecast.peak_bytes)}{measured}; a step: planned "
            f"{forecast.step_seconds:.3g} s ({forecast.low:.3g} to {forecast.high:.3g}), "
            f"measured {seconds:.3g} s"
        )

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that the run has needed so far; None where the system does not tell."""
        device = self.loop.device
        if device.type == "cuda":
            return torch.cuda.max_memory_reserved(device)
        peak = peak_memory_gib(device)
        return None if peak is None else round(peak * 2**30) - self.resident_bytes

    def measured(self) -> dict[str, Any]:
        """Planned and measured, as `summary.json` has them; None where nothing was planned."""
        forecast, rounds = self.forecast, self.loop.rounds
        return {
            "planned_peak_bytes": None if forecast is None else forecast.peak_bytes,
            "measured_peak_bytes": self.peak_bytes,
            "planned_step_seconds": None if forecast is None else forecast.step_seconds,
            "measured_step_seconds": self.loop.seconds / rounds if rounds else None,
        }
