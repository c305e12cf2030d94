"""A dry run: all of a run but its steps, and what it tells.

Everything is loaded, the data prepared, the adapter attached and one batch sent through the model;
nothing is learned, and the output folder is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graft.training.config import RunConfig
from graft.training.loop import Rehearsal, rehearse
from graft.training.setup import Setup, set_up

__all__ = ["DryRun", "dry_run", "spark"]

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class DryRun:
    """What a run would be.

    Attributes:
        setup: What it would start with.
        rehearsal: Its first batch, its steps and their learning rates.
    """

    setup: Setup
    rehearsal: Rehearsal

    def lines(self) -> list[str]:
        """What people want to know before they start it."""
        return [*self._model(), *self._steps(), self._first_batch(), *self._files()]

    def _model(self) -> list[str]:
        config, start = self.setup.config, self.rehearsal.start
        name, adapter = next(iter(config.adapters.items()))
        return [
            f"base model: {config.base_model} ({type(self.setup.model.base_model).__name__}, "
            f"{config.task_type}) on {start.device}",
            f"adapter {name}: {adapter.method}, trains {start.trainable:,} of "
            f"{start.parameters:,} parameters ({start.trainable / start.parameters:.2%})",
        ]

    def _steps(self) -> list[str]:
        train, start = self.setup.config.train, self.rehearsal.start
        each, rates = self.rehearsal.steps_per_epoch, self.rehearsal.rates
        tokens = self.setup.data.tokens
        size, pieces = train.per_device_train_batch_size, train.gradient_accumulation_steps
        top = max(range(len(rates)), key=rates.__getitem__)
        at_step = f" (step {top + 1:,})" if top else ""
        done = f", {start.step:,} of them done" if start.step else ""
        return [
            f"rows: {start.rows:,} to train on, {start.eval_rows:,} to evaluate on",
            f"steps: {start.steps:,}{done}; {each:,} an epoch, each of {size * pieces:,} rows"
            + (f" ({pieces} batches of {size})" if pieces > 1 else ""),
            f"tokens: {tokens:,} an epoch, about {round(tokens * start.steps / each):,} in all",
            f"batches: {start.batches}",
            f"learning rate: {spark(rates)} {train.lr_scheduler_type}, "
            f"{rates[0]:.3g} -> {rates[top]:.3g}{at_step} -> {rates[-1]:.3g}",
        ]

    def _first_batch(self) -> str:
        batch = self.rehearsal.batch
        return (
            f"first batch: {batch.rows:,} rows, {batch.tokens:,} tokens, "
            f"{batch.targets:,} targets; loss {self.rehearsal.loss:.4f}"
        )

    def _files(self) -> list[str]:
        train, folder = self.setup.config.train, self.setup.output_dir
        evaluated = ""
        if self.rehearsal.start.eval_rows:
            evaluated = f"evaluates {_when(train.eval_steps)}, "
        there = ", replacing the run that is there" if folder.exists() else ""
        if self.setup.checkpoint is not None:
            there = f", going on from {self.setup.checkpoint.name}"
        return [
            f"when: {evaluated}saves {_when(train.save_steps)}, "
            f"logs every {_steps(train.logging_steps)}",
            f"writes to: {folder}{there}",
        ]


def dry_run(
    config: RunConfig, *, resume: bool = False, tell: Callable[[str], None] = lambda _: None
) -> DryRun:
    """Do all of `train` but the steps.

    Args:
        config: The run.
        resume: Rehearse going on from the newest checkpoint.
        tell: Hears, in a line, what takes long.

    Raises:
        GraftError: What `train` would raise before its first step.
        TrainingError: The loss of the first batch is no number.
    """
    setup = set_up(config, resume, tell)
    return DryRun(setup, rehearse(**setup.for_fit()))


def spark(values: Sequence[float], width: int = 30) -> str:
    """The course of `values`, none of them negative, in characters of eight heights."""
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]
    top = max(picked) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in picked)


def _when(steps: int | None) -> str:
    return "after each epoch" if steps is None else f"every {_steps(steps)}"


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count:,} steps"
