"""What every model of a comparison is measured with: the same rows, questions and second text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.comparison.answers import Answers, answers_to
from graft.comparison.config import CompareConfig, Metric
from graft.comparison.results import Inference, Sample
from graft.comparison.speed import Speed
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.encoding import Tell
from graft.data.prepare import prepare_data
from graft.errors import ConfigError, DataError
from graft.training.batches import Rows
from graft.training.config import RunConfig
from graft.training.evaluate import evaluate
from graft.training.forward import Forward, make_forward

__all__ = ["Reading", "Yardstick"]


@dataclass(frozen=True)
class Reading:
    """What a model came to: attributes as in `results.Measured`, and what it said."""

    quality: dict[str, float]
    text_loss: float | None
    inference: Inference
    said: list[str]


class Yardstick:
    """Measures models.

    Args:
        run: The run file's run; its `data` says which rows are held out.
        settings: Its `compare:` section.
        rows: The held-out rows.
        tokenizer: The base model's, with the chat template that is trained.
        tell: Hears, in a line, what takes long.

    Raises:
        GraftError: A second text that cannot be read, or that the task has no use for.
    """

    def __init__(
        self,
        run: RunConfig,
        settings: CompareConfig,
        rows: Any,
        tokenizer: PreTrainedTokenizerBase,
        tell: Tell,
    ) -> None:
        self.run, self.settings = run, settings
        self.rows: Rows = rows
        self.collate = Collator(tokenizer, run.task_type)
        self.text = _second_text(run, settings, tokenizer, tell)
        self.answers: Answers | None = answers_to(rows, tokenizer, run.task_type, settings)
        self.speed = Speed(rows, tokenizer, run.task_type, settings)

    def read(self, model: PeftModel) -> Reading:
        """Measure `model`, which is then as it was.

        Raises:
            FloatingPointError: Its loss is no number.
        """
        model.eval()
        forward = make_forward(model, self.run.task_type)
        quality = self._evaluate(model, self.rows, forward)
        text_loss = None
        if self.text is not None:
            text_loss = self._evaluate(model, self.text, forward)["loss"]
        said: list[str] = []
        if self.answers is not None:
            count = min(len(self.answers.prompts), max(self.settings.answers, self._samples))
            said = self.answers.of(model, count)
            match = self.answers.exact_match(said[: self.settings.answers])
            quality |= {} if match is None else {"exact_match": match}
        return Reading(quality, text_loss, self.speed.of(model), said[: self._samples])

    def samples(self, base: Reading, own: Reading) -> tuple[Sample, ...]:
        """What both said to the same inputs."""
        if self.answers is None:
            return ()
        given = zip(self.answers.prompts, self.answers.wanted, base.said, own.said, strict=False)
        return tuple(Sample(*four) for four in given)

    def metric(self, measures: dict[str, float]) -> str:
        """The measure that points are ranked by.

        Raises:
            ConfigError: The one that the run file names is not measured here.
        """
        wanted: Metric | None = self.settings.metric
        if wanted is None:
            return next(name for name in ("f1", "accuracy", "loss") if name in measures)
        if wanted not in measures:
            raise ConfigError(
                f"`compare.metric` is {wanted}, which is not measured here. Valid: "
                f"{', '.join(measures)}."
            )
        return wanted

    @property
    def _samples(self) -> int:
        return self.settings.samples

    def _evaluate(self, model: PeftModel, rows: Rows, forward: Forward) -> dict[str, float]:
        size, task = self.run.train.per_device_eval_batch_size, self.run.task_type
        base: Any = model.base_model
        found = evaluate(model, rows, self.collate, task, size, base.device, forward)
        if not math.isfinite(found["loss"]):
            raise FloatingPointError(f"the loss on held-out rows is {found['loss']}")
        return found


def _second_text(
    run: RunConfig, settings: CompareConfig, tokenizer: PreTrainedTokenizerBase, tell: Tell
) -> Rows | None:
    """The rows of the second text; None where none is named."""
    if settings.text is None:
        return None
    if run.task_type not in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        raise ConfigError(
            f"`compare.text` is for models that generate: a new head of {run.task_type} has not "
            "learned anything yet that it could forget."
        )
    data = DataConfig(
        train=settings.text,
        max_length=run.data.max_length,
        dataset_dir=run.data.dataset_dir,
        use_cache=run.data.use_cache,
    )
    try:
        rows: Any = prepare_data(data, tokenizer, run.task_type, run.train.seed, tell).train
    except DataError as error:
        raise DataError(f"compare.text: {error}") from None
    return rows.select(range(min(len(rows), settings.text_rows)))
