"""All that a run needs before its first step: checked, loaded, prepared, attached.

Everything that can be wrong with the input is found here, before the output folder is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from graft.adapt import PeftModel, get_peft_model
from graft.atomic import require_room, write_text
from graft.data.collate import Collator
from graft.data.prepare import PreparedData, prepare_data
from graft.errors import ConfigError
from graft.hub import (
    LABELS_NAME,
    load_config,
    load_model,
    load_tokenizer,
    local_folder,
    resolve,
)
from graft.training.config import RunConfig
from graft.training.positions import room_for_text, within
from graft.training.precision import base_in_bf16
from graft.training.state import Store, checkpoints

__all__ = ["Setup", "set_up"]

# Settings that change nothing in what is learned, so a resumed run may change them.
_FREE = (
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "use_cache",
)


@dataclass(frozen=True)
class Setup:
    """A run before its first step.

    Attributes:
        config: The run, with what was left open filled in.
        tokenizer: The base model's, with the chat template that is trained.
        data: The rows.
        model: The base model with the adapter.
        store: Where checkpoints will go; nothing is written yet.
        checkpoint: Where the run goes on; None where it starts anew.
        notes: Decisions and facts that people should see.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    model: PeftModel
    store: Store
    checkpoint: Path | None
    notes: list[str]

    @property
    def output_dir(self) -> Path:
        """Where the run will write."""
        return self.store.output_dir

    def for_fit(self) -> dict[str, Any]:
        """The arguments of `fit` and of `rehearse`."""
        return {
            "model": self.model,
            "train_rows": self.data.train,
            "eval_rows": self.data.eval,
            "collate": Collator(self.tokenizer, self.config.task_type),
            "settings": self.config.train,
            "task_type": self.config.task_type,
            "store": self.store,
            "resume_from": self.checkpoint,
        }


def set_up(config: RunConfig, resume: bool, tell: Callable[[str], None]) -> Setup:
    """Check, load, prepare and attach.

    Args:
        config: The run.
        resume: Go on from the newest checkpoint in `train.output_dir`.
        tell: Hears, in a line, what takes long.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used.
    """
    output_dir = Path(str(config.train.output_dir))
    checkpoint = _newest(output_dir) if resume else None
    require_room(output_dir)
    if checkpoint is None and not config.train.overwrite_output_dir:
        _refuse_used(output_dir)
    if local_folder(config.base_model) is not None:  # a download comes after what is quick to see
        resolve(config.base_model)
    bf16, why = base_in_bf16(config.train.bf16, load_config(config.base_model, config.revision))
    config = config.resolved(bf16)
    notes = [f"precision: {'bfloat16' if bf16 else 'float32'} ({why})"]

    tokenizer = load_tokenizer(config.base_model, config.revision)
    room = room_for_text(config, tokenizer)
    if config.data.max_length > room:
        config = within(config, room)
        notes.append(f"data.max_length: {room:,} (the base model has positions for no more)")
    data = prepare_data(config.data, tokenizer, config.task_type, config.train.seed, tell)
    notes.append(_about(data, config))
    # None where texts were learned as they stand: what lies beside the adapter says how to prompt.
    tokenizer.chat_template = data.chat_template
    model = _attach(config, data, checkpoint)
    store = Store(
        output_dir,
        origin=_origin(config, data.sha256),
        save_beside=lambda folder: _save_beside(folder, tokenizer, data.label_names),
        keep=config.train.save_total_limit,
    )
    return Setup(config, tokenizer, data, model, store, checkpoint, notes)


def _newest(output_dir: Path) -> Path:
    found = checkpoints(output_dir)
    if not found:
        raise ConfigError(
            f"{output_dir} has no checkpoint to resume from; run without --resume "
            "(with train.overwrite_output_dir=true where the folder is not empty)."
        )
    return found[-1]


def _refuse_used(output_dir: Path) -> None:
    if output_dir.is_file():
        raise ConfigError(f"`train.output_dir` is a file: {output_dir}.")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(
            f"{output_dir} is not empty. Go on with the run in it (--resume), replace that run "
            "(train.overwrite_output_dir=true), or give another train.output_dir."
        )


def _about(data: PreparedData, config: RunConfig) -> str:
    text = f"data: {len(data.train):,} rows to train on, format {data.format}"
    if data.rows_truncated:
        text += f"; {data.rows_truncated:,} were cut to {config.data.max_length:,} tokens"
    if data.rows_dropped:
        text += f"; {data.rows_dropped:,} were dropped, nothing was left in them to learn"
    return text


def _attach(config: RunConfig, data: PreparedData, checkpoint: Path | None) -> PeftModel:
    """The base model with a new adapter, or with that of `checkpoint`."""
    set_seed(config.train.seed)  # also of a new head, which load_model makes
    base = load_model(
        config.base_model,
        config.task_type,
        label_names=data.label_names,
        dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
        revision=config.revision,
    )
    if checkpoint is not None:
        return PeftModel.from_pretrained(base, checkpoint, is_trainable=True)
    return get_peft_model(base, config.adapter.peft_config(config.task_type))


def _save_beside(
    folder: Path, tokenizer: PreTrainedTokenizerBase, label_names: list[str] | None
) -> None:
    """Write what using the adapter needs and the adapter's own files have no place for."""
    tokenizer.save_pretrained(folder)
    if label_names is not None:
        write_text(folder / LABELS_NAME, json.dumps(label_names, ensure_ascii=False) + "\n")


def _origin(config: RunConfig, hashes: dict[str, str]) -> dict[str, Any]:
    """What a resumed run must have in common with the one it goes on with, by dotted name."""
    raw = config.model_dump(mode="json")
    origin = {name: raw[name] for name in ("base_model", "revision", "task_type", "adapters")}
    for section in ("data", "train"):
        for name, value in raw[section].items():
            if name not in _FREE:
                origin[f"{section}.{name}"] = value
    return origin | {f"sha256 of {path}": digest for path, digest in hashes.items()}
