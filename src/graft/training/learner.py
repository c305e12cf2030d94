"""One adapter on its way: its rows, its optimizer, its place in the run.

Nothing here knows of other adapters. What a forward pass holds is the loop's affair.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graft.adapt import PeftModel
from graft.config import PeftConfig, TaskType
from graft.errors import ConfigError
from graft.methods import METHODS
from graft.methods.base import PrefixAdapter
from graft.training.batches import (
    Batch,
    Collate,
    Order,
    Rows,
    make_batch,
    row_lengths,
    split,
    total_steps,
)
from graft.training.config import TrainConfig
from graft.training.memory import peak_memory_gib
from graft.training.optimizer import make_optimizer, make_schedule, trainable_parameters
from graft.training.report import Callback, Record, Start
from graft.training.state import Progress, Trained

__all__ = ["Learner", "Run"]


@dataclass(frozen=True)
class Run:
    """What an adapter learns, and how.

    Attributes:
        train_rows: Rows as `prepare_data` makes them; so are `eval_rows`.
        eval_rows: None to train without evaluation.
        settings: Its own. What concerns the whole run (see `config.OF_THE_RUN`) is not looked at.
        config: Of the adapter, where it is still to be attached.
    """

    train_rows: Rows
    eval_rows: Rows | None = None
    settings: TrainConfig = field(default_factory=TrainConfig)
    config: PeftConfig | None = None


class Learner:
    """One adapter, learning.

    Args:
        name: Of the adapter; None where a model's active adapters, or the model itself, learn.
        run: What it learns, and how.
        model: The model with the adapter, on its device.
        task_type: What the rows are.
        collate: Rows -> batch.

    Attributes:
        trained: What changes while it trains.
        records: Its log.
        callbacks: Who is told of it.
        failure: Why it cannot go on; None where it can.

    Raises:
        ConfigError: Nothing to train, or settings that need evaluation rows without any.
    """

    def __init__(
        self, name: str | None, run: Run, model: PeftModel, task_type: TaskType, collate: Collate
    ) -> None:
        self.name, self.run, self.settings = name, run, run.settings
        self.model, self.task_type, self.collate = model, task_type, collate
        self.device = next(model.base_model.parameters()).device
        self.parameters = trainable_parameters(model)
        if name is not None:
            own = {id(parameter) for parameter in model.adapter(name).parameters()}
            self.parameters = {n: p for n, p in self.parameters.items() if id(p) in own}
        self._check()
        settings = self.settings
        per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        self.order = Order(len(run.train_rows), per_step, settings.seed)
        self.steps = total_steps(settings, self.order)
        kinds = model.peft_config
        kind = kinds[name] if name is not None else next(iter(kinds.values()), None)
        rate = settings.learning_rate or (METHODS[kind.peft_type].learning_rate if kind else None)
        if rate is None:
            raise ConfigError("learning_rate is missing; without an adapter there is no default.")
        optimizer = make_optimizer(self.parameters, settings, rate)
        self.trained = Trained(optimizer, make_schedule(optimizer, settings, self.steps))
        self.records: list[Record] = []
        self.callbacks: list[Callback] = []
        self.failure: str | None = None
        self._losses: list[tuple[Tensor, int]] = []  # of steps not waited for yet
        self._due: list[Batch] = []
        self._ahead: Future[list[Batch]] | None = None  # what is due in the next step
        self._loss = torch.zeros((), device=self.device)
        self._norm = torch.zeros(())
        self._rate = 0.0  # of the last step

    def _check(self) -> None:
        if not len(self.run.train_rows):
            raise ConfigError("There are no rows to train on.")
        if not self.parameters:
            raise ConfigError("Nothing in the model is trainable; attach an adapter first.")
        wants_rows = {
            "early_stopping_patience": self.settings.early_stopping_patience,
            "load_best_model_at_end": self.settings.load_best_model_at_end,
        }
        for name, value in wants_rows.items():
            if value and not self.run.eval_rows:
                raise ConfigError(
                    f"`train.{name}` needs rows to evaluate on; set `data.eval` to a file or "
                    "`data.eval_fraction` to a share such as 0.05."
                )

    # --- where it is ----------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        return self.trained.progress

    @property
    def stopped_early(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.progress.without_gain >= patience

    @property
    def learns(self) -> bool:
        """Whether there is another step for it."""
        return self.failure is None and self.progress.step < self.steps and not self.stopped_early

    @property
    def drops_out(self) -> bool:
        """Whether it draws masks over tokens."""
        layers = {} if self.name is None else self.model.adapter(self.name).layers
        return any(getattr(layer, "dropout", 0.0) for layer in layers.values())

    def virtual_tokens(self, of_prefix: bool) -> int:
        """How many it puts in front of each row, as a prefix or as a prompt."""
        if self.name is None:
            return 0
        own = isinstance(self.model.adapter(self.name).virtual_tokens, PrefixAdapter)
        count = getattr(self.model.peft_config[self.name], "num_virtual_tokens", None) or 0
        return count if own is of_prefix else 0

    def start(self, batches: str) -> Start:
        """What is known before the first step; `batches` as `Start` has it."""
        _, every = self.model.get_nb_trainable_parameters()
        return Start(
            step=self.progress.step,
            steps=self.steps,
            rows=len(self.run.train_rows),
            eval_rows=len(self.run.eval_rows or ()),
            trainable=sum(parameter.numel() for parameter in self.parameters.values()),
            parameters=every,
            device=str(self.device),
            batches=batches,
        )

    # --- a step ---------------------------------------------------------------------------

    def batches(self, step: int | None = None) -> list[Batch]:
        """The batches of a step, by default the next one."""
        indices = self.order.step(self.progress.step if step is None else step)
        pieces = split(indices, self.settings.per_device_train_batch_size)
        rows = self.run.train_rows
        return [
            make_batch([rows[i] for i in piece], self.collate, self.task_type) for piece in pieces
        ]

    def _make_ahead(self, step: int, pinned: bool) -> list[Batch]:
        batches = self.batches(step)
        return [batch.pinned() for batch in batches] if pinned else batches

    def first_row(self) -> Batch:
        """A batch of one row."""
        return make_batch([self.run.train_rows[0]], self.collate, self.task_type)

    def largest_step(self) -> tuple[int, int]:
        """Tokens of the first epoch's largest batch, and the step that it is in."""
        lengths = row_lengths(self.run.train_rows)
        size = self.settings.per_device_train_batch_size
        sizes = [
            max(int(lengths[piece].sum()) for piece in split(self.order.step(step), size))
            for step in range(min(self.steps, self.order.steps_per_epoch))
        ]
        return max((tokens, step) for step, tokens in enumerate(sizes))

    def begin_step(self, pool: Executor, pinned: bool = False) -> list[Batch]:
        """The batches of the next step, of which `take` is to be told.

        Args:
            pool: Makes those of the step after it meanwhile. What is wrong with them is raised
                when they are due.
            pinned: Whether those are to be in memory that a GPU reads by itself.
        """
        after = self.progress.step + 1
        self._due = self.batches() if self._ahead is None else self._ahead.result()
        ahead = after < self.steps
        self._ahead = pool.submit(self._make_ahead, after, pinned) if ahead else None
        self._loss = torch.zeros((), device=self.device)
        return self._due

    def noise(self, batch: Batch) -> int:
        """What the dropout of one batch of the step follows from."""
        number = next(i for i, due in enumerate(self._due) if due is batch)
        place = f"{self.settings.seed}/{self.progress.step}/{number}"
        return zlib.crc32(place.encode())

    @property
    def weight(self) -> float:
        """Of each target in the step's loss, its mean: however targets fall into batches."""
        return 1 / sum(batch.targets for batch in self._due)

    def forget_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def take(self, loss: Tensor) -> None:
        """Take in a batch's share of the step's loss, whose gradient is there."""
        self._loss += loss

    def end_step(self) -> None:
        """Learn from the gradient."""
        limit = self.settings.max_grad_norm or math.inf
        self._norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        self._rate = self.trained.schedule.get_last_lr()[0]  # of this step, not of the next
        try:
            self.trained.optimizer.step()
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            self._loss = self._loss * math.nan  # no float32 holds the step: no number follows
        self.trained.schedule.step()
        self.trained.optimizer.zero_grad()
        self._losses.append((self._loss, sum(batch.targets for batch in self._due)))
        self.progress.step += 1
        self.progress.rows += sum(batch.rows for batch in self._due)
        self.progress.tokens += sum(batch.tokens for batch in self._due)
        self._due = []

    # --- what is due after a step ---------------------------------------------------------

    @property
    def _last(self) -> bool:
        return self.progress.step == self.steps

    @property
    def _epoch_over(self) -> bool:
        return self.progress.step % self.order.steps_per_epoch == 0

    @property
    def logs(self) -> bool:
        return self._last or self.progress.step % self.settings.logging_steps == 0

    @property
    def evaluates(self) -> bool:
        every = self.settings.eval_steps
        due = self._epoch_over if every is None else self.progress.step % every == 0
        return bool(self.run.eval_rows) and (self._last or due)

    @property
    def saves(self) -> bool:
        every = self.settings.save_steps
        due = self._epoch_over if every is None else self.progress.step % every == 0
        return self._last or due or self.stopped_early

    def wait(self, seconds: float) -> None:
        """Wait for the device and check the losses since the last wait.

        Args:
            seconds: Spent on training so far.
        """
        progress = self.progress
        lost: list[int] = []  # steps whose loss is no number
        for step, (loss, targets) in enumerate(self._losses, progress.step - len(self._losses) + 1):
            progress.loss_sum += loss.item() * targets
            progress.loss_targets += targets
            lost += [] if math.isfinite(progress.loss_sum) else [step]
        if lost or not math.isfinite(self._norm.item()):
            half = next(self.model.base_model.parameters()).dtype != torch.float32
            self.failure = (
                f"The loss is no number any more since step {[*lost, progress.step][0]}. "
                "Try a lower learning rate or a warm-up (`train.warmup_ratio=0.03`)"
                f"{', or float32 (`train.bf16=false`)' if half else ''}."
            )
        self._losses.clear()
        progress.seconds = seconds

    def log(self) -> None:
        """Tell how it stands."""
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

    def tell_metrics(self, metrics: dict[str, float]) -> None:
        """Tell what an evaluation found."""
        step = self.progress.step
        record = {"step": step, "epoch": step / self.order.steps_per_epoch}
        self._record("on_evaluate", record | {f"eval_{name}": v for name, v in metrics.items()})

    def judge(self, metrics: dict[str, float]) -> bool:
        """Whether no evaluation before was better; then the weights are kept, where asked."""
        progress = self.progress
        progress.eval_last = metrics
        if progress.eval_best and not metrics["loss"] < progress.eval_best["loss"]:
            progress.without_gain += 1
            return False
        progress.eval_best, progress.best_step, progress.without_gain = metrics, progress.step, 0
        if self.settings.load_best_model_at_end:
            self.trained.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        return True

    @torch.no_grad()
    def end(self) -> None:
        """Put the best weights in place, where they are wanted."""
        self._ahead = None
        for name, value in self.trained.best.items():
            self.parameters[name].copy_(value)

    def tell(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def _record(self, event: str, record: Record) -> None:
        self.records.append(record)
        self.tell(event, record)

    def listen(self, callbacks: Sequence[Callback]) -> None:
        """Let `callbacks` hear of this adapter."""
        self.callbacks += callbacks
