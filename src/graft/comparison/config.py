"""What a user says about a comparison: the `compare:` section of a run file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graft.errors import ConfigError, did_you_mean, nearest
from graft.training.config import MOST_RATE
from graft.training.faults import unknown_setting, value_faults

__all__ = ["CompareConfig", "Metric", "parse_compare"]

Metric = Literal["loss", "perplexity", "accuracy", "f1", "exact_match"]


class CompareConfig(BaseModel):
    """How often each point is trained, and what is measured of it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        strict=True,
    )

    seeds: int = Field(default=1, ge=1)
    """Times that each point is trained: with `train.seed` and the numbers after it."""

    full: bool = False
    """Compare with full fine-tuning as well, which trains every parameter of the base model."""

    full_learning_rate: float = Field(default=5e-5, gt=0, le=MOST_RATE)
    """The highest learning rate of full fine-tuning; `train.learning_rate` is the adapters'."""

    metric: Metric | None = None
    """What points are ranked by. None: `accuracy` or `f1` where the task has it, else `loss`."""

    text: str | None = Field(default=None, min_length=1)
    """A second text, best one that the base model was trained on: what the loss on it rises by is
    what was forgotten. A file as in `data.train`; for models that generate."""

    text_rows: int = Field(default=100, ge=1)
    """Most rows of the second text that are read, or blocks of `data.max_length` tokens."""

    answers: int = Field(default=100, ge=0)
    """Most held-out prompts that are answered for `exact_match`; 0 for none."""

    samples: int = Field(default=3, ge=0)
    """Held-out inputs whose answers are shown beside the base model's."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of an answer."""

    speed_rows: int = Field(default=8, ge=1)
    """Rows in the batch that the speed of inference is measured on."""

    speed_tokens: int = Field(default=32, ge=1)
    """Tokens that each of these rows is gone on with, where the model generates."""


def parse_compare(given: Any) -> CompareConfig:
    """The `compare:` section that `given` describes; None where the file has none.

    Raises:
        ConfigError: With a sentence for each setting that does not exist or cannot work.
    """
    if given is None:
        return CompareConfig()
    if not isinstance(given, dict):
        raise ConfigError(f"`compare` cannot be {given!r}: expected settings such as `seeds: 3`.")
    fields = list(CompareConfig.model_fields)
    faults = [
        _unknown(str(name), value, fields) for name, value in given.items() if name not in fields
    ]
    try:
        config = CompareConfig.model_validate({n: v for n, v in given.items() if n in fields})
    except ValidationError as error:
        raise ConfigError(
            "\n".join([*faults, *value_faults(error, given, "compare").values()])
        ) from None
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _unknown(name: str, value: Any, fields: list[str]) -> str:
    """A sentence on a setting that `compare` does not have; its own ones are nearer than others."""
    if nearest(name, fields):
        return f"There is no setting `compare.{name}`.{did_you_mean(name, fields)}"
    return unknown_setting({}, f"compare.{name}", value, fields)
