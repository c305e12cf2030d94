"""What a user says about the data: the `data:` section of a run file.

Checks values only; whether the files are there and fit is `prepare`'s to find out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["DataConfig", "FormatName"]

FormatName = Literal[
    "auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text", "classification"
]


class DataConfig(BaseModel):
    """Which files to learn from, and how to read them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: str | list[str]
    """File or files to train on: json, jsonl, csv, parquet or txt; several must be of one kind."""

    eval: str | None = None
    """File to evaluate on, in the same format."""

    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training rows to set aside for evaluation where there is no `eval` file."""

    max_length: int = Field(default=1024, ge=2)
    """Most tokens in a row. Longer rows are cut; text is split into blocks of this length."""

    format: FormatName = "auto"
    """How rows are laid out; `auto` tells it from the columns."""

    columns: dict[str, str] = {}
    """Our name of a column -> the file's, e.g. `{prompt: question, completion: answer}`."""

    train_on: Literal["response", "all"] = "response"
    """Learn the responses only, or every token. Plain text is always learned whole."""

    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows, the first ones, of the training and of the eval data."""

    @field_validator("train", "eval")
    @classmethod
    def _at_home(cls, paths: str | list[str] | None) -> str | list[str] | None:
        if isinstance(paths, list):
            return [str(Path(path).expanduser()) for path in paths]
        return paths and str(Path(paths).expanduser())

    @model_validator(mode="after")
    def _one_eval(self) -> Self:
        if self.eval is not None and self.eval_fraction > 0:
            raise ValueError("give either eval or eval_fraction, not both")
        if not self.train:
            raise ValueError("train names no file")
        return self
