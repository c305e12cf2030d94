"""What a comparison found, as data: what `results.json` holds and all that shows it reads.

A point is one adapter of the run file with one choice of the grid; it is trained once a seed, and
each of these is a row. A group is a point over its seeds. How it was measured is `study`'s, how
seeds are summed up `spread`'s, PEFT's shape of the same `records`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "FULL",
    "HIGHER_IS_BETTER",
    "Base",
    "Comparison",
    "Group",
    "Inference",
    "Measured",
    "Point",
    "Row",
    "Sample",
    "Spread",
]

FULL = "full"  # the method of a point that trains every parameter of the base model
# Of the measures of quality; of all others less is better.
HIGHER_IS_BETTER = ("accuracy", "f1", "exact_match")


@dataclass(frozen=True)
class Point:
    """One thing to compare.

    Attributes:
        name: The adapter's name in the run file, with the grid's choices behind it:
            `lora r=4 learning_rate=0.001`. No two points share one.
        adapter: The adapter's name in the run file; `full` for full fine-tuning.
        method: As in run files, or `full`.
        choices: The grid's choices, by dotted path.
    """

    name: str
    adapter: str
    method: str
    choices: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """What the base model and a row's model say to the same input.

    Attributes:
        prompt: The input.
        wanted: What the data says to it; None where it says nothing.
        base: The base model's answer.
        answer: The trained model's answer.
    """

    prompt: str
    wanted: str | None
    base: str
    answer: str


@dataclass(frozen=True)
class Inference:
    """How fast a model answers.

    Attributes:
        unit: `tokens/s` for models that generate, `rows/s` for others.
        unmerged: With the adapter beside the base model.
        merged: With the adapter in the weights; None where it cannot be.
        note: Why it cannot be; empty where it can.
    """

    unit: str
    unmerged: float
    merged: float | None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What one row came to.

    Attributes:
        quality: On held-out rows: `loss`; `perplexity` of language models; `accuracy`, `f1` and
            `exact_match` where the task has them (0 to 1).
        forgetting: Loss on the second text less the base model's; None without such a text.
        trainable_parameters: Parameters that learned.
        all_parameters: All parameters, these included.
        adapter_bytes: What was learned, as it lies on disk.
        peak_bytes: Most memory while training; None where the system does not tell. On a CPU that
            of the whole process, base model included.
        average_bytes: Mean of the memory after each step.
        high_bytes: 99th percentile of the same.
        steps: Optimizer steps.
        rows: Rows that were learned from, each as often as it was.
        tokens: Tokens of these, without padding.
        seconds: Of the steps alone.
        total_seconds: With loading, evaluation and all else that is measured here.
        tokens_per_second: `tokens` over `seconds`.
        inference: How fast it answers.
        samples: The same inputs for every row.
        log: Records as in `train_log.jsonl`: `step` with `loss` or `eval_loss`, for curves.
    """

    quality: dict[str, float]
    forgetting: float | None
    trainable_parameters: int
    all_parameters: int
    adapter_bytes: int
    peak_bytes: int | None
    average_bytes: int | None
    high_bytes: int | None
    steps: int
    rows: int
    tokens: int
    seconds: float
    total_seconds: float
    tokens_per_second: float
    inference: Inference
    samples: tuple[Sample, ...]
    log: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """One point with one seed.

    Attributes:
        point: Name of the point.
        seed: Its seed.
        folder: Where its run lies, relative to the comparison's folder.
        config: The run that trained it, in full, and its `compare` settings.
        peft_config: Its adapter's config, as in `adapter_config.json`; None for `full`.
        data_sha256: Digest of each file of its data, by path.
        created_at: When it was done: UTC, ISO 8601.
        measured: None where it failed.
        error: Why it failed, else empty.
    """

    point: str
    seed: int
    folder: str
    config: dict[str, Any]
    peft_config: dict[str, Any] | None
    data_sha256: dict[str, str]
    created_at: str
    measured: Measured | None
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds: its mean, and the lowest and the highest of them."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """A point over its seeds.

    Attributes:
        point: The point.
        seeds: Seeds that were measured.
        failed: Seeds that failed.
        figures: By name: each measure of quality, `forgetting`, `trainable_parameters`,
            `adapter_bytes`, `peak_bytes`, `seconds`, `tokens_per_second`, `unmerged`, `merged`.
            What was not measured is not there.
        rank: 1 and the number of points that are better for sure: all of whose seeds are better
            than every seed of this one. None where a single seed tells nothing of chance, or where
            all seeds failed.
        alike: Names of the points that cannot be told from this one: their spreads overlap.
    """

    point: Point
    seeds: tuple[int, ...]
    failed: int
    figures: dict[str, Spread]
    rank: int | None
    alike: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """The base model by itself, for comparison.

    Attributes:
        name: As in the run file.
        parameters: How many it has.
        dtype: `float32` or `bfloat16`.
        device: Where all was measured, in words.
        quality: As in `Measured`; a head that is new answers by chance.
        text_loss: Its loss on the second text; None without one.
        inference: `merged` is the same as `unmerged`.
    """

    name: str
    parameters: int
    dtype: str
    device: str
    quality: dict[str, float]
    text_loss: float | None
    inference: Inference


@dataclass(frozen=True)
class Comparison:
    """A whole comparison, or as much of it as is done.

    Attributes:
        task_type: As in run files.
        metric: The measure of quality that points are ranked by.
        base: The base model by itself.
        eval_rows: Held-out rows.
        train_rows: Rows to train on.
        data_sha256: Digest of each file of the data, by path.
        text: Path of the second text; None without one.
        seeds: All seeds.
        planned: Rows that there will be when it is done.
        rows: One a point and seed, point by point; fewer than planned while it is under way.
        groups: One a point, in the order of the run file.
        versions: Of python, graft and its libraries, by name.
        system: Of the machine, by name.
        created_at: UTC, ISO 8601.
    """

    task_type: str
    metric: str
    base: Base
    train_rows: int
    eval_rows: int
    data_sha256: dict[str, str]
    text: str | None
    seeds: tuple[int, ...]
    planned: int
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    versions: dict[str, str]
    system: dict[str, str]
    created_at: str

    @property
    def higher_is_better(self) -> bool:
        """Whether more of `metric` is better."""
        return self.metric in HIGHER_IS_BETTER

    @property
    def is_ranked(self) -> bool:
        """Whether any point is better than another one for sure."""
        return len({group.rank for group in self.groups} - {None}) > 1

    @property
    def measures(self) -> list[str]:
        """The measures of quality there are, the one that ranks first."""
        return sorted(self.base.quality, key=lambda name: name != self.metric)
