"""The training loop: adapters of any methods on one frozen base model that is loaded already.

A round is one optimizer step of every adapter that still learns (`rounds`); after it comes what is
due: to log, to evaluate, to save. Which rows make a batch is `batches`', what one adapter is
`learner`'s, what is kept for a resume is `state`'s, what is told is `report`'s; files beyond
checkpoints are `run`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.errors import ConfigError, about
from graft.training.batches import Batch, Collate, collating
from graft.training.evaluate import evaluate
from graft.training.forward import Part, make_forward, without_dropout
from graft.training.lean import lean_layers
from graft.training.learner import Learner, Run
from graft.training.memory import peak_memory_gib, reset_peak_memory
from graft.training.optimizer import learning_rates
from graft.training.report import Callback, LogFile, Record
from graft.training.rounds import Rounds
from graft.training.state import Failure, Progress, Store

__all__ = ["FitResult", "Loop", "Rehearsal", "TrainingError", "fit"]


class TrainingError(RuntimeError):
    """A run that cannot go on, with the reason and what to try."""


@dataclass(frozen=True)
class FitResult:
    """What the training of one adapter came to.

    Attributes:
        progress: Steps, rows, tokens, seconds and metrics at the end.
        peak_memory_gib: Of the whole run, see `graft.training.memory`; None where the system does
            not tell.
        records: The log, as in `train_log.jsonl`.
        stopped_early: Whether the evaluations no longer got better.
        failure: Why it did not come to its end, in a sentence; None where it did.
    """

    progress: Progress
    peak_memory_gib: float | None
    records: list[Record]
    stopped_early: bool
    failure: str | None = None


@dataclass(frozen=True)
class Rehearsal:
    """What the training of one adapter would be, after all but its steps.

    Attributes:
        learner: The adapter, before its first step.
        how: How batches meet the model.
        batch: The first one.
        loss: The mean loss over its targets, with the adapter as it is before the first step.
        rates: The learning rate of each step.
    """

    learner: Learner
    how: str
    batch: Batch
    loss: float
    rates: list[float]


def fit(
    model: PeftModel,
    runs: Run | Mapping[str, Run],
    collate: Collate,
    *,
    task_type: TaskType,
    callbacks: Sequence[Callback] = (),
) -> dict[str, FitResult]:
    """Train adapters of `model`, in place, and write nothing.

    Seeds torch's generator before each forward pass. Batches are made ahead by another thread, so
    rows or a `collate` that draw from that generator would not be the same twice: let them have
    one of their own.

    Args:
        model: Base model with the adapters attached.
        runs: What each adapter learns, by its name; one run without a name trains whatever is
            trainable in the model.
        collate: Rows -> batch, such as `graft.data.Collator`.
        task_type: Decides loss and metrics.
        callbacks: Who is told.

    Returns:
        By name; of a run without one, under `""`.

    Raises:
        ConfigError: Nothing to train, or settings that need evaluation rows without any.
        TrainingError: The loss of every adapter is no number any more.
    """
    return Loop(model, runs, collate, task_type).run(callbacks)


class Loop:
    """A run under way: everything is checked once it is made.

    Args and Raises are those of `fit`, and:
        store: Where checkpoints, best adapters and logs go; None writes nothing.
    """

    def __init__(
        self,
        model: PeftModel,
        runs: Run | Mapping[str, Run],
        collate: Collate,
        task_type: TaskType,
        store: Store | None = None,
    ) -> None:
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            raise ConfigError("This version trains in one process; start it without a launcher.")
        self.model: PeftModel = accelerator.prepare(model)
        self.collate, self.task_type, self.store = collate, task_type, store
        named = {None: runs} if isinstance(runs, Run) else dict(runs)
        self.learners: list[Learner] = []
        for name, run in named.items():
            with about(None if name is None else f"adapter {name!r}"):
                self.learners.append(Learner(name, run, self.model, task_type, collate))
        self.forward = make_forward(model, task_type)
        self.device = accelerator.device
        self.settings = self.learners[0].settings  # for what concerns the whole run
        self.rounds = 0
        self._rounds = Rounds(self.model, self.forward, self.settings.tokens_per_pass)
        self.callbacks: list[Callback] = []
        self._seconds = 0.0
        self._since: float | None = None  # None: it is not training at this moment
        self._of_base: dict[int, dict[str, float]] = {}  # metrics without adapters, by rows

    # --- from start to end ----------------------------------------------------------------

    def resume(self, checkpoint: Path) -> None:
        """Go on from `checkpoint`; the model holds its adapters already.

        Raises:
            CheckpointError: A checkpoint of another run.
        """
        assert self.store is not None
        self.rounds, failures = self.store.load(
            checkpoint, {learner.name: learner.trained for learner in self.learners}
        )
        for learner in self.learners:
            learner.failure = failures.get(learner.name)
        self._seconds = max(learner.progress.seconds for learner in self.learners)

    def run(
        self, callbacks: Sequence[Callback] = (), largest_first: bool = False
    ) -> dict[str, FitResult]:
        """Train to the end.

        Args:
            callbacks: Who is told.
            largest_first: Send the largest batch through before the first step, so that memory
                which is not there is missed at once.
        """
        self._listen(callbacks)
        for learner in self.learners:
            learner.forget_gradients()  # what was there before is of no step of this run
        reset_peak_memory(self.device)
        for learner in self.learners:
            learner.tell("on_start", learner.start(self.forward.how))
        try:
            self._evaluate_before()
            self.model.train()
            reason = self._rounds.turns(self.learners)
            if reason:
                self.note(f"adapters take turns: {reason}")
            with (
                collating() as pool,
                _checkpointing(self.model, self.settings.gradient_checkpointing),
                without_dropout(self.model),
                lean_layers(self.model),
            ):
                if largest_first:
                    self._rounds.try_largest(self.learners)
                self._since = time.perf_counter()
                while any(learner.learns for learner in self.learners):
                    learning = [learner for learner in self.learners if learner.learns]
                    self._rounds.take(learning, pool)
                    self.rounds += 1
                    for learner in learning:
                        learner.tell("on_step", learner.progress.step)
                    self._settle(learning)
        finally:
            self._seconds, self._since = self.seconds, None
            self.model.eval()
            self._tell("on_end")
        for learner in self.learners:
            learner.end()
        return {learner.name or "": self._result(learner) for learner in self.learners}

    def rehearse(self) -> list[Rehearsal]:
        """The first batch of each adapter through the model, and nothing learned from it."""
        return [self._rehearsal(learner) for learner in self.learners]

    def _rehearsal(self, learner: Learner) -> Rehearsal:
        # A run that is at its end has no next batch: its last one will do.
        batch = learner.batches(min(learner.progress.step, learner.steps - 1))[0]
        self.model.eval()
        with torch.no_grad():
            part = Part(batch.to(self.device), 1 / batch.targets, learner.name)
            loss = self.forward.loss([part])[0].item()
        if not math.isfinite(loss):
            raise TrainingError(f"The loss of the first batch is {loss}, before any step.")
        rates = learning_rates(learner.trained.schedule, learner.steps)
        return Rehearsal(learner, self.forward.how, batch, loss, rates)

    def _listen(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        for learner in self.learners:
            learner.listen([callback.of(learner.name) for callback in callbacks])
            if self.store is not None:
                path = self.store.folder(learner.name) / "train_log.jsonl"
                log = LogFile(path, learner.progress.step)
                learner.records = list(log.kept)
                learner.listen([log])

    @property
    def seconds(self) -> float:
        """Spent on training so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    def note(self, text: str) -> None:
        """Tell of a decision or a fact that people should see."""
        self._tell("note", text)

    def _tell(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def _result(self, learner: Learner) -> FitResult:
        return FitResult(
            progress=learner.progress,
            peak_memory_gib=peak_memory_gib(self.device),
            records=learner.records,
            stopped_early=learner.stopped_early,
            failure=learner.failure,
        )

    # --- after a round --------------------------------------------------------------------

    def _settle(self, learning: Sequence[Learner]) -> None:
        """What is due after a round: log, evaluate, save."""
        for learner in learning:
            if learner.logs and self._wait(learner):
                learner.log()
        for learner in learning:
            if learner.evaluates and self._wait(learner):
                with self._pause(), self._only(learner):
                    self._judge(learner)
        if self.store is not None and any(learner.saves for learner in learning):
            for learner in learning:
                self._wait(learner)
            with self._pause():
                self._save()

    def _wait(self, learner: Learner) -> bool:
        """Wait for the device; False where `learner` cannot go on."""
        if learner.failure is not None:
            return False
        learner.wait(self.seconds)
        if learner.failure is None:
            return True
        if all(each.failure is not None for each in self.learners):
            raise TrainingError(learner.failure)
        self.note(f"{learner.name} leaves the run. {learner.failure}")
        return False

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Time inside the block is no training."""
        self._seconds, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()

    @contextmanager
    def _only(self, learner: Learner) -> Iterator[None]:
        """Let the adapter of `learner` alone be active inside the block."""
        active = self.model.active_adapters
        if learner.name is not None:
            self.model.set_adapter(learner.name)
        try:
            yield
        finally:
            self.model.set_adapter(active)

    def _judge(self, learner: Learner) -> None:
        metrics = self._evaluate(learner)
        learner.tell_metrics(metrics)
        if learner.judge(metrics) and self.store is not None:
            self.store.save_best(self.model, learner.name)

    def _evaluate(self, learner: Learner) -> dict[str, float]:
        rows = learner.run.eval_rows
        assert rows is not None
        size = learner.settings.per_device_eval_batch_size
        return evaluate(
            self.model, rows, self.collate, self.task_type, size, self.device, self.forward
        )

    def _evaluate_before(self) -> None:
        """What the base model makes of the evaluation rows; rows that are shared, once."""
        with self.model.disable_adapter():
            for learner in self.learners:
                if not learner.run.eval_rows or learner.progress.eval_before:
                    continue
                key = id(learner.run.eval_rows)
                if key not in self._of_base:
                    self._of_base[key] = self._evaluate(learner)
                learner.progress.eval_before = self._of_base[key]
                learner.tell_metrics(learner.progress.eval_before)

    def _save(self) -> None:
        assert self.store is not None
        kept = {each.name: each.trained for each in self.learners if each.failure is None}
        failures = {
            each.name: Failure(each.failure, each.progress)
            for each in self.learners
            if each.failure is not None
        }
        self._tell("on_save", self.store.save(self.model, kept, self.rounds, failures))


@contextmanager
def _checkpointing(model: PeftModel, wanted: bool) -> Iterator[None]:
    """Compute activations again inside the block, where that is wanted."""
    base: Any = model.base_model
    if not wanted or base.is_activation_checkpointing:
        yield
        return
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        base.activation_checkpointing_disable()
