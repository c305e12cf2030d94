"""A dry run: all of a run but its steps, and what it tells.

Everything is loaded, the data prepared, the adapter attached and one batch sent through the model;
nothing is learned, and the output folder is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graft.training.config import RunConfig
from graft.training.loop import Rehearsal
from graft.training.setup import Lesson, Setup, set_up

__all__ = ["DryRun", "dry_run", "spark"]

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class DryRun:
    """What a run would be.

    Attributes:
        setup: What it would start with.
        rehearsals: Of each adapter its first batch, its steps and their learning rates.
    """

    setup: Setup
    rehearsals: list[Rehearsal]

    def lines(self) -> list[str]:
        """What people want to know before they start it."""
        base = self.setup.model.base_model
        config = self.setup.config
        device = next(base.parameters()).device
        lines = [
            f"base model: {config.base_model} ({type(base).__name__}, {config.task_type}) on "
            f"{device}"
        ]
        for rehearsal, lesson in zip(self.rehearsals, self.setup.lessons.values(), strict=True):
            lines += _of_adapter(rehearsal, lesson)
        there = ", replacing the run that is there" if self.setup.output_dir.exists() else ""
        if self.setup.checkpoint is not None:
            there = f", going on from {self.setup.checkpoint.name}"
        return [*lines, f"writes to: {self.setup.output_dir}{there}"]


def _of_adapter(rehearsal: Rehearsal, lesson: Lesson) -> list[str]:
    name, adapter = next(iter(lesson.config.adapters.items()))
    start = rehearsal.learner.start(rehearsal.how)
    train, rates, batch = lesson.config.train, rehearsal.rates, rehearsal.batch
    each = rehearsal.learner.order.steps_per_epoch
    size, pieces = train.per_device_train_batch_size, train.gradient_accumulation_steps
    top = max(range(len(rates)), key=rates.__getitem__)
    at_step = f" (step {top + 1:,})" if top else ""
    done = f", {start.step:,} of them done" if start.step else ""
    tokens = lesson.data.tokens
    evaluated = f"evaluates {_when(train.eval_steps)}, " if start.eval_rows else ""
    return [
        f"adapter {name}: {adapter.method}, trains {start.trainable:,} of "
        f"{start.parameters:,} parameters ({start.trainable / start.parameters:.2%})",
        f"rows: {start.rows:,} to train on, {start.eval_rows:,} to evaluate on",
        f"steps: {start.steps:,}{done}; {each:,} an epoch, each of {size * pieces:,} rows"
        + (f" ({pieces} batches of {size})" if pieces > 1 else ""),
        f"tokens: {tokens:,} an epoch, about {round(tokens * start.steps / each):,} in all",
        f"batches: {start.batches}",
        f"learning rate: {spark(rates)} {train.lr_scheduler_type}, "
        f"{rates[0]:.3g} -> {rates[top]:.3g}{at_step} -> {rates[-1]:.3g}",
        f"first batch: {batch.rows:,} rows, {batch.tokens:,} tokens, "
        f"{batch.targets:,} targets; loss {rehearsal.loss:.4f}",
        f"when: {evaluated}saves {_when(train.save_steps)}, logs every "
        f"{_steps(train.logging_steps)}",
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
    return DryRun(setup, setup.loop().rehearse())


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
