"""What a user says about the data: the `data:` section of a run file.

Checks values only; whether the files are there and fit is `sources`' to find out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

__all__ = ["HUBS", "DataConfig", "FormatName", "SourceConfig"]

FormatName = Literal[
    "auto",
    "alpaca",
    "messages",
    "sharegpt",
    "prompt_completion",
    "seq2seq",
    "text",
    "classification",
    "token_classification",
    "question_answering",
]

HUBS = ("hf:", "ms:")  # how the path of a data set on a hub begins


class SourceConfig(BaseModel):
    """One entry of `train` or `eval`. A plain text stands for an entry with that `path` alone."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True
    )

    path: str = Field(min_length=1)
    """A file (json, jsonl, csv, parquet, txt), a folder of such files, a data set on a hub
    (`hf:ORG/NAME` or `ms:ORG/NAME`, then `:SUBSET`, `@REVISION`), or a name in the
    dataset_info.json of `dataset_dir`. `#500` at its end takes the first 500 rows."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often its rows count in training: 2 takes each row twice an epoch, 0.5 half of them."""

    format: FormatName | None = None
    """How its rows are laid out; where it is not given, as `data.format` says."""

    columns: dict[str, str] | None = None
    """Our name of a column -> the file's; where it is not given, as `data.columns` says."""

    subset: str | None = None
    """Which of the data set's subsets (Hugging Face calls them configs) to take."""

    split: str | None = None
    """Which of the data set's splits to take; `train` where it is not given."""

    revision: str | None = None
    """Branch, tag or commit of the data set on its hub."""

    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows, the first ones; where not given, as `data.max_rows` says."""

    @field_validator("path")
    @classmethod
    def _at_home(cls, path: str) -> str:
        return _at_home(path)

    @model_serializer(mode="wrap")
    def _only_what_is_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


def _at_home(path: Any) -> Any:
    """`path` with a `~` in it resolved, where it is one that lies here."""
    here = isinstance(path, str) and path.startswith("~")
    return str(Path(path).expanduser()) if here else path


def _kind(value: Any) -> str:
    if isinstance(value, dict | SourceConfig):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else "path"


# Told apart by a function, so that a mistake in an entry is reported once, not once a kind.
_Path = Annotated[str, Field(min_length=1), Tag("path")]
_Entry = Annotated[_Path | Annotated[SourceConfig, Tag("mapping")], Discriminator(_kind)]
_Entries = Annotated[
    _Path | Annotated[SourceConfig, Tag("mapping")] | Annotated[list[_Entry], Tag("list")],
    Discriminator(_kind),
]


class DataConfig(BaseModel):
    """What to learn from, and how to read it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True
    )

    train: _Entries
    """What to train on: a path, a mapping with `path` and more (`weight`, `split`, ...), or a list
    of these. Files of several kinds and formats may be mixed."""

    eval: _Entries | None = None
    """What to evaluate on, said in the same way."""

    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training rows to set aside for evaluation where there is no `eval`."""

    eval_seed: int | None = Field(default=None, ge=0)
    """Decides which rows `eval_fraction` sets aside; None takes `train.seed`."""

    dataset_dir: str | None = None
    """Folder whose dataset_info.json (LLaMA-Factory's) gives names to data sets."""

    max_length: int = Field(default=1024, ge=2)
    """Most tokens in a row. Longer rows are cut; text is split into blocks of this length."""

    format: FormatName = "auto"
    """How rows are laid out; `auto` tells it from the columns."""

    columns: dict[str, str] = {}
    """Our name of a column -> the file's, e.g. `{prompt: question, completion: answer}`."""

    train_on: Literal["response", "all"] = "response"
    """Learn the responses only, or every token. Plain text is always learned whole."""

    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows, the first ones, of each entry of `train` and `eval`."""

    use_cache: bool = True
    """Keep tokenised rows, so that the next run with the same data starts at once."""

    @field_validator("train", "eval", "dataset_dir")
    @classmethod
    def _at_home(cls, given: Any) -> Any:
        if isinstance(given, list):
            return [_at_home(entry) for entry in given]
        return _at_home(given)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.eval is not None and self.eval_fraction > 0:
            raise ValueError("give either eval or eval_fraction, not both")
        if not self.train_sources:
            raise ValueError("train names no file")
        if self.eval is not None and not self.eval_sources:
            raise ValueError("eval names no file")
        learned = {_split_of(source) for source in self.train_sources}
        for source in self.eval_sources:
            if source.weight != 1:
                raise ValueError("weight is for train only: each row is evaluated once")
            # Where no split is named, that is the training split: easily overlooked.
            if source.path.startswith(HUBS) and _split_of(source) in learned:
                raise ValueError(
                    f"eval names the rows of {source.path} that train learns: give another split, "
                    f"such as {{path: {source.path!r}, split: validation}}, or eval_fraction"
                )
        return self

    @property
    def train_sources(self) -> tuple[SourceConfig, ...]:
        """The entries of `train`, each with what the section says where it says nothing itself."""
        return self._sources(self.train)

    @property
    def eval_sources(self) -> tuple[SourceConfig, ...]:
        """The entries of `eval`, likewise; none where there is no `eval`."""
        return () if self.eval is None else self._sources(self.eval)

    def split_seed(self, seed: int) -> int:
        """What decides which rows `eval_fraction` sets aside in a run with `seed`."""
        return seed if self.eval_seed is None else self.eval_seed

    def _sources(
        self, given: str | SourceConfig | list[str | SourceConfig]
    ) -> tuple[SourceConfig, ...]:
        entries = given if isinstance(given, list) else [given]
        return tuple(map(self._filled, entries))

    def _filled(self, entry: str | SourceConfig) -> SourceConfig:
        source = SourceConfig(path=entry) if isinstance(entry, str) else entry
        section = {"format": self.format, "columns": self.columns, "max_rows": self.max_rows}
        missing = {name: value for name, value in section.items() if getattr(source, name) is None}
        return source.model_copy(update=missing)


def _split_of(source: SourceConfig) -> tuple[str | None, ...]:
    return source.path, source.subset, source.split or "train"
