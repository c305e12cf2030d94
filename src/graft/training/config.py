"""What a run is: the settings of a run file, checked.

Leaf names are those of transformers' `TrainingArguments` and of PEFT's configs. Reading the file,
overrides on the command line and the wording of errors are `runfile`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from graft.config import PeftConfig, TaskType
from graft.data.config import DataConfig
from graft.methods import METHODS, make_config

__all__ = ["MOST_RATE", "OF_THE_RUN", "AdapterSettings", "RunConfig", "TrainConfig"]

# Settings of `train` that all adapters of a run share, as they share the base model.
OF_THE_RUN = (
    "output_dir",
    "overwrite_output_dir",
    "bf16",
    "gradient_checkpointing",
    "tokens_per_pass",
    "save_total_limit",
)

MOST_RATE = 1e30  # AdamW divides it by 1 - adam_beta1, and float32 ends at 3e38

# transformers' schedules that are a function of the step alone, so that a run can resume.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


class TrainConfig(BaseModel):
    """How to train: batches, optimizer, schedule, when to evaluate and save."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        strict=True,  # true is no 1, and "1" neither
    )

    output_dir: str | None = None
    """Folder for the adapter, the checkpoints and the log."""

    overwrite_output_dir: bool = False
    """Remove the run that `output_dir` holds."""

    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass."""

    per_device_eval_batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass of an evaluation."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward and backward passes in one optimizer step."""

    learning_rate: float | None = Field(default=None, gt=0, le=MOST_RATE)
    """Highest learning rate; None takes the method's default."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, of matrices; vectors such as biases and IA3's factors are left alone."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""

    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient to this norm; 0 does not clip."""

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows."""

    max_steps: int = -1
    """Optimizer steps, in place of `num_train_epochs`; -1 goes by the epochs."""

    lr_scheduler_type: Schedule = "linear"
    """transformers' schedule of the learning rate."""

    lr_scheduler_kwargs: dict[str, Any] = {}
    """More arguments of the schedule, such as `num_cycles` or `min_lr`."""

    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises."""

    logging_steps: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between two evaluations; None evaluates after each epoch."""

    save_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; None saves one after each epoch."""

    save_total_limit: int | None = Field(default=2, ge=1)
    """Keep only so many checkpoints, the newest; null keeps all. `best/` is kept besides."""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a lower loss."""

    load_best_model_at_end: bool = False
    """End with the adapter of the lowest evaluation loss, not with the last one."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Of the adapter's start, the order of the rows and dropout."""

    bf16: bool | None = None
    """Hold the base model in bfloat16 or not (float32); None decides by the hardware."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    tokens_per_pass: int | None = Field(default=None, ge=1)
    """Most tokens in one forward pass that several adapters share; None: as many as the largest
    batch of any of them has. A batch that is larger by itself has a pass of its own."""

    @field_validator("output_dir")
    @classmethod
    def _at_home(cls, folder: str | None) -> str | None:
        return folder and str(Path(folder).expanduser())

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps != -1 and steps < 1:
            raise ValueError(f"give 1 or more, or -1 to go by num_train_epochs, not {steps}")
        return steps

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError("give either warmup_ratio or warmup_steps, not both")
        return self


class AdapterSettings(BaseModel):
    """One adapter: its method, and the fields of that method's config."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        strict=True,
    )

    method: str
    """`lora`, `ia3`, `bitfit`, `prompt_tuning`, `p_tuning` or `prefix_tuning`."""

    learning_rate: float | None = Field(default=None, gt=0, le=MOST_RATE)
    """Takes the place of `train.learning_rate` for this adapter."""

    data: dict[str, Any] = {}
    """Settings that take the place of those in the run's `data` for this adapter."""

    train: dict[str, Any] = {}
    """Settings that take the place of those in the run's `train` for this adapter."""

    def peft_config(self, task_type: TaskType) -> PeftConfig:
        """The config that `get_peft_model` takes.

        Raises:
            ConfigError: An unknown method or field, or a value that cannot work.
        """
        return make_config(self.method, **{"task_type": task_type, **(self.model_extra or {})})

    @model_validator(mode="after")
    def _fields_exist(self) -> Self:
        make_config(self.method, **(self.model_extra or {}))
        return self

    @field_validator("train")
    @classmethod
    def _its_own(cls, train: dict[str, Any]) -> dict[str, Any]:
        for name in OF_THE_RUN:
            if name in train:
                raise ValueError(
                    f"{name} is the same for all adapters of a run; set it in the run's `train`"
                )
        return train

    @model_serializer(mode="wrap")
    def _only_what_is_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            name: value
            for name, value in write(self).items()
            if value or name not in ("data", "train")
        }


class RunConfig(BaseModel):
    """A whole run file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_model: str
    """The frozen model: a folder, a hub id, `hf:ORG/NAME` or `ms:ORG/NAME`."""

    revision: str | None = None
    """Branch, tag or commit of the base model on its hub."""

    task_type: TaskType
    """What the base model is for: `CAUSAL_LM`, `SEQ_CLS`, `SEQ_2_SEQ_LM`, ..."""

    adapters: dict[str, AdapterSettings]
    """The adapters to train, by name: one, or several at once on the same base model."""

    data: DataConfig
    """What to learn from."""

    train: TrainConfig
    """How to train."""

    @field_validator("adapters")
    @classmethod
    def _names_work(cls, adapters: dict[str, AdapterSettings]) -> dict[str, AdapterSettings]:
        if not adapters:
            raise ValueError("name one adapter, such as `assistant: {method: lora}`")
        taken: dict[str, str] = {}
        for name in adapters if len(adapters) > 1 else ():  # each has a folder of its name
            if not re.fullmatch(r"[\w-][\w -]*", name) or name.startswith("checkpoint-"):
                raise ValueError(
                    f"{name!r} cannot be the name of one of several adapters, as it names a "
                    "folder: use letters, digits, - and _, and do not begin with `checkpoint-`"
                )
            other = taken.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} would be the same folder on some systems")
        return adapters

    @field_validator("train")
    @classmethod
    def _has_output_dir(cls, train: TrainConfig) -> TrainConfig:
        if not train.output_dir:
            raise ValueError("output_dir is missing: the folder for the adapter and the log")
        return train

    @model_validator(mode="after")
    def _each_works_alone(self) -> Self:
        for name, own in self.adapters.items():
            try:
                self.alone(name)
            except ValidationError as error:
                said = error.errors()[0]
                where = ".".join(str(part) for part in said["loc"])
                message = str(said.get("ctx", {}).get("error", said["msg"]))
                about = f"{where}: " if where else ""
                raise ValueError(f"adapter {name!r}: {about}{message}") from None
            if own.learning_rate is not None and "learning_rate" in own.train:
                raise ValueError(f"adapter {name!r} has two learning rates; give one")
        return self

    @property
    def adapter(self) -> AdapterSettings:
        """The adapter of a run that has one."""
        (only,) = self.adapters.values()
        return only

    def alone(self, name: str) -> RunConfig:
        """The run that trains the adapter `name` as this one does, and no other."""
        own = self.adapters[name]
        train = _replaced(self.train, own.train)
        if len(self.adapters) > 1:
            train = train.model_copy(update={"output_dir": str(Path(str(train.output_dir), name))})
        return self.model_copy(
            update={
                "adapters": {name: own.model_copy(update={"data": {}, "train": {}})},
                "data": _replaced(self.data, own.data),
                "train": train,
            }
        )

    def resolved(self, bf16: bool) -> RunConfig:
        """The same run with what was left open filled in: learning rates and precision."""
        train = self.train.model_copy(update={"bf16": bf16})
        if len(self.adapters) > 1:
            return self.model_copy(update={"train": train})
        return self.model_copy(
            update={"train": train.model_copy(update={"learning_rate": self.learning_rate})}
        )

    @property
    def learning_rate(self) -> float:
        """Of a run that has one adapter: its own, else the run's, else the method's."""
        kind = self.adapter.peft_config(self.task_type).peft_type
        own = self.adapter.learning_rate or self.train.learning_rate
        return own or METHODS[kind].learning_rate


Section = TypeVar("Section", bound=BaseModel)

# Of each pair one setting at most can hold, so one takes the other's place too.
_RIVALS = (
    ("eval", "eval_fraction"),
    ("warmup_ratio", "warmup_steps"),
    ("max_steps", "num_train_epochs"),
)


def _replaced(section: Section, changes: Mapping[str, Any]) -> Section:
    """`section` with `changes` in it, checked."""
    if not changes:
        return section
    gone = {
        b for pair in _RIVALS for a, b in (pair, pair[::-1]) if a in changes and b not in changes
    }
    kept = section.model_dump(exclude_unset=True, exclude=gone)
    return type(section).model_validate({**kept, **changes})
