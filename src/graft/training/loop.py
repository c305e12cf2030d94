"""The training loop: one adapter, on a base model that is loaded already.

A step is: rows -> micro-batches -> gradients -> clip -> optimizer -> schedule. Which rows is
`batches`', what is kept for a resume is `state`'s, what is told is `report`'s; files of a run
beyond its checkpoints are `run`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.errors import ConfigError
from graft.methods import METHODS
from graft.training.batches import Batch, Collate, Order, Rows, make_batch, split, total_steps
from graft.training.config import TrainConfig
from graft.training.evaluate import evaluate
from graft.training.forward import make_forward, without_dropout
from graft.training.memory import peak_memory_gib, reset_peak_memory
from graft.training.optimizer import (
    learning_rates,
    make_optimizer,
    make_schedule,
    trainable_parameters,
)
from graft.training.report import Callback, LogFile, Record, Start
from graft.training.state import Progress, Store, Trained

__all__ = ["FitResult", "Rehearsal", "TrainingError", "fit", "rehearse"]


class TrainingError(RuntimeError):
    """A run that cannot go on, with the reason and what to try."""


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        progress: Steps, rows, tokens, seconds and metrics at the end.
        peak_memory_gib: See `graft.training.memory`; None where the system does not tell.
        records: The log, as in `train_log.jsonl`.
        stopped_early: Whether the evaluations no longer got better.
    """

    progress: Progress
    peak_memory_gib: float | None
    records: list[Record]
    stopped_early: bool


@dataclass(frozen=True)
class Rehearsal:
    """What a run would be, after all but its steps.

    Attributes:
        start: What is known before the first step.
        steps_per_epoch: Optimizer steps in one pass over the rows.
        batch: The first one.
        loss: The mean loss over its targets, with the adapter as it is before the first step.
        rates: The learning rate of each step.
    """

    start: Start
    steps_per_epoch: int
    batch: Batch
    loss: float
    rates: list[float]


def fit(
    model: PeftModel,
    train_rows: Rows,
    eval_rows: Rows | None,
    collate: Collate,
    settings: TrainConfig,
    *,
    task_type: TaskType,
    store: Store | None = None,
    resume_from: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train what is trainable in `model`, in place.

    Sets the seed of every random number generator of the process.

    Args:
        model: Base model with the adapter attached.
        train_rows: Rows as `prepare_data` makes them; so are `eval_rows`.
        eval_rows: None to train without evaluation.
        collate: Rows -> batch, such as `graft.data.Collator`.
        settings: Its `output_dir` is not looked at: `store` says where, if anywhere.
        task_type: Decides the metrics.
        store: Where `checkpoint-N/`, `best/` and `train_log.jsonl` go; None writes nothing.
        resume_from: A `checkpoint-N` to go on from; `model` holds its adapter already.
        callbacks: Who is told.

    Raises:
        ConfigError: Nothing to train, or settings that need evaluation rows without any.
        CheckpointError: A checkpoint of another run.
        TrainingError: The loss is no number any more.
    """
    loop = _Loop(model, train_rows, eval_rows, collate, settings, task_type)
    if resume_from is not None:
        assert store is not None
        store.load(resume_from, loop.trained)
    else:
        set_seed(settings.seed)
    loop.store, loop.callbacks = store, list(callbacks)
    if store is not None:
        log = LogFile(store.output_dir / "train_log.jsonl", loop.progress.step)
        loop.records = list(log.kept)
        loop.callbacks.append(log)
    return loop.run()


def rehearse(
    model: PeftModel,
    train_rows: Rows,
    eval_rows: Rows | None,
    collate: Collate,
    settings: TrainConfig,
    *,
    task_type: TaskType,
    store: Store | None = None,
    resume_from: Path | None = None,
) -> Rehearsal:
    """Do all of `fit` but the steps: nothing learns and no file is written.

    Args and Raises are those of `fit`.
    """
    loop = _Loop(model, train_rows, eval_rows, collate, settings, task_type)
    if resume_from is not None:
        assert store is not None
        store.load(resume_from, loop.trained)
    return loop.rehearse()


class _Loop:
    """A run under way."""

    store: Store | None = None

    def __init__(
        self,
        model: PeftModel,
        train_rows: Rows,
        eval_rows: Rows | None,
        collate: Collate,
        settings: TrainConfig,
        task_type: TaskType,
    ) -> None:
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise ConfigError("This version trains in one process; start it without a launcher.")
        self.device = self.accelerator.device
        self.model: PeftModel = self.accelerator.prepare(model)
        self.rows, self.eval_rows = train_rows, eval_rows
        self.collate, self.settings, self.task_type = collate, settings, task_type
        self.parameters = trainable_parameters(model)
        self._check()
        per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        self.order = Order(len(train_rows), per_step, settings.seed)
        self.steps = total_steps(settings, self.order)
        kind = next(iter(model.peft_config.values())).peft_type
        rate = settings.learning_rate or METHODS[kind].learning_rate
        optimizer = make_optimizer(self.parameters, settings, rate)
        schedule = make_schedule(optimizer, settings, self.steps)
        self.forward = make_forward(model, task_type)
        self.trained = Trained(self.model, optimizer, schedule, self.device)
        self.callbacks: list[Callback] = []
        self.records: list[Record] = []
        self._losses: list[tuple[Tensor, int]] = []  # of steps not waited for yet
        self._norm = torch.zeros(())
        self._rate = 0.0  # of the last step
        self._mark = 0.0  # when the time was last counted

    def _check(self) -> None:
        if not len(self.rows):
            raise ConfigError("There are no rows to train on.")
        if not self.parameters:
            raise ConfigError("Nothing in the model is trainable; attach an adapter first.")
        wants_rows = {
            "early_stopping_patience": self.settings.early_stopping_patience,
            "load_best_model_at_end": self.settings.load_best_model_at_end,
        }
        for name, value in wants_rows.items():
            if value and not self.eval_rows:
                raise ConfigError(
                    f"`train.{name}` needs rows to evaluate on; set `data.eval` to a file or "
                    "`data.eval_fraction` to a share such as 0.05."
                )

    @property
    def progress(self) -> Progress:
        return self.trained.progress

    def run(self) -> FitResult:
        """Train to the end."""
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        reset_peak_memory(self.device)
        self._tell("on_start", self._start())
        try:
            if self.eval_rows and not self.progress.eval_before:
                with self.model.disable_adapter():
                    self.progress.eval_before = self._evaluate()
            self.model.train()
            self._mark = time.perf_counter()
            with without_dropout(self.model.base_model):
                while self.progress.step < self.steps and not self._stopped_early:
                    self._step()
                    self._settle()
        finally:
            self._tell("on_end")
        with torch.no_grad():
            for name, value in self.trained.best.items():
                self.parameters[name].copy_(value)
        self.model.eval()
        return FitResult(
            progress=self.progress,
            peak_memory_gib=peak_memory_gib(self.device),
            records=self.records,
            stopped_early=self._stopped_early,
        )

    def rehearse(self) -> Rehearsal:
        """The first batch through the model, and nothing learned from it."""
        done = self.progress.step
        # A run that is at its end has no next batch: its last one will do.
        batch = self._batches(min(done, self.steps - 1))[0]
        self.model.eval()
        with torch.no_grad():
            loss = self._forward(batch).item()
        if not math.isfinite(loss):
            raise TrainingError(f"The loss of the first batch is {loss}, before any step.")
        return Rehearsal(
            start=self._start(),
            steps_per_epoch=self.order.steps_per_epoch,
            batch=batch,
            loss=loss,
            rates=learning_rates(self.trained.schedule, self.steps),
        )

    def _start(self) -> Start:
        trainable, parameters = self.model.get_nb_trainable_parameters()
        return Start(
            step=self.progress.step,
            steps=self.steps,
            rows=len(self.rows),
            eval_rows=len(self.eval_rows or ()),
            trainable=trainable,
            parameters=parameters,
            device=str(self.device),
            batches=self.forward.how,
        )

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    @property
    def _stopped_early(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.progress.without_gain >= patience

    def _step(self) -> None:
        """One optimizer step."""
        batches = self._batches(self.progress.step)
        targets = sum(batch.targets for batch in batches)
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            # The model's loss is the mean over this batch; the step's is the mean over all its
            # targets, however they fall into batches.
            part = self._forward(batch) * (batch.targets / targets)
            self.accelerator.backward(part)
            loss += part.detach()
        limit = self.settings.max_grad_norm or math.inf
        self._norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        self._rate = self.trained.schedule.get_last_lr()[0]  # of this step, not of the next
        self.trained.optimizer.step()
        self.trained.schedule.step()
        self.trained.optimizer.zero_grad()
        self._losses.append((loss, targets))
        self.progress.step += 1
        self.progress.rows += sum(batch.rows for batch in batches)
        self.progress.tokens += sum(batch.tokens for batch in batches)
        self._tell("on_step", self.progress.step)

    def _forward(self, batch: Batch) -> Tensor:
        inputs = {name: value.to(self.device) for name, value in batch.inputs.items()}
        return self.forward.loss(inputs, batch.targets)

    def _batches(self, step: int) -> list[Batch]:
        indices = self.order.step(step)
        return [
            make_batch([self.rows[i] for i in piece], self.collate, self.task_type)
            for piece in split(indices, self.settings.per_device_train_batch_size)
        ]

    def _settle(self) -> None:
        """What is due after a step: log, evaluate, save."""
        step, settings = self.progress.step, self.settings
        last = step == self.steps
        epoch_over = step % self.order.steps_per_epoch == 0
        evaluate_now = (
            epoch_over if settings.eval_steps is None else step % settings.eval_steps == 0
        )
        save_now = epoch_over if settings.save_steps is None else step % settings.save_steps == 0
        if last or step % settings.logging_steps == 0:
            self._log()
        if self.eval_rows and (last or evaluate_now):
            self._wait()
            self._judge(self._evaluate())
            self._mark = time.perf_counter()
        if self.store is not None and (last or save_now or self._stopped_early):
            self._wait()
            self._tell("on_save", self.store.save(self.trained))
            self._mark = time.perf_counter()

    def _wait(self) -> None:
        """Wait for the device, count the time, and check the losses since the last wait."""
        progress = self.progress
        for loss, targets in self._losses:
            progress.loss_sum += loss.item() * targets
            progress.loss_targets += targets
        if not math.isfinite(progress.loss_sum + self._norm.item()):
            first = progress.step - len(self._losses) + 1
            raise TrainingError(
                f"The loss is no number any more since step {first} to {progress.step}. "
                "Try a lower learning rate, a warm-up (`train.warmup_ratio=0.03`) or float32 "
                "(`train.bf16=false`)."
            )
        self._losses.clear()
        now = time.perf_counter()
        progress.seconds += now - self._mark
        self._mark = now

    def _log(self) -> None:
        self._wait()
        progress = self.progress
        progress.train_loss = progress.loss_sum / progress.loss_targets
        progress.loss_sum, progress.loss_targets = 0.0, 0
        record = {
            "step": progress.step,
            "epoch": progress.step / self.order.steps_per_epoch,
            "loss": progress.train_loss,
            "learning_rate": self._rate,
            "grad_norm": self._norm.item(),
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "tokens_per_second": progress.tokens_per_second,
            "peak_memory_gib": peak_memory_gib(self.device),
        }
        self._record("on_log", record)

    def _record(self, event: str, record: Record) -> None:
        self.records.append(record)
        self._tell(event, record)

    def _evaluate(self) -> dict[str, float]:
        assert self.eval_rows is not None
        size = self.settings.per_device_eval_batch_size
        metrics = evaluate(
            self.model, self.eval_rows, self.collate, self.task_type, size, self.device
        )
        step = self.progress.step
        record = {"step": step, "epoch": step / self.order.steps_per_epoch}
        self._record("on_evaluate", record | {f"eval_{name}": v for name, v in metrics.items()})
        return metrics

    def _judge(self, metrics: dict[str, float]) -> None:
        """Keep the adapter if no evaluation before was better."""
        progress = self.progress
        progress.eval_last = metrics
        if progress.eval_best and not metrics["loss"] < progress.eval_best["loss"]:
            progress.without_gain += 1
            return
        progress.eval_best, progress.best_step, progress.without_gain = metrics, progress.step, 0
        if self.settings.load_best_model_at_end:
            self.trained.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        if self.store is not None:
            self.store.save_best(self.model)
