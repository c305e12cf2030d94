"""A run file's run: base model, data, adapter, loop, and the files that stay.

Everything that can be wrong with the input is found before the output folder is touched.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
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
from graft.hub import LABELS_NAME, load_config, load_model, load_tokenizer
from graft.training.config import RunConfig
from graft.training.loop import FitResult, TrainingError, fit
from graft.training.report import Callback, Start, draw_losses
from graft.training.runfile import dump_run_config
from graft.training.state import Store, checkpoints

__all__ = ["TrainResult", "train"]

# Settings that change nothing in what is learned, so a resumed run may change them.
_FREE = (
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)
_OF_A_RUN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "graft_state.safetensors",
    "chat_template.jinja",
    LABELS_NAME,
    "run.yaml",
    "train_log.jsonl",
    "summary.json",
    "loss.png",
)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        output_dir: Folder with the adapter.
        summary: What `summary.json` says.
        model: The base model with the trained adapter.
        tokenizer: Its tokenizer, with the chat template that was trained.
    """

    output_dir: Path
    summary: dict[str, Any]
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase


def train(
    config: RunConfig, *, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> TrainResult:
    """Train the adapter of a run file and write its folder.

    Args:
        config: The run.
        resume: Go on from the newest checkpoint in `train.output_dir`.
        callbacks: Who is told; `Terminal()` shows progress.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used; the output
            folder is then as it was.
        TrainingError: The loss is no number any more.
    """
    output_dir = Path(str(config.train.output_dir))
    checkpoint = _newest(output_dir) if resume else None
    require_room(output_dir)
    if checkpoint is None and not config.train.overwrite_output_dir:
        _refuse_used(output_dir)
    bf16, why = _precision(config.train.bf16)
    config = config.resolved(bf16)
    notes = [f"precision: {'bfloat16' if bf16 else 'float32'} ({why})"]

    tokenizer = load_tokenizer(config.base_model, config.revision)
    config, shortened = _within_positions(config, tokenizer)
    notes += shortened
    data = prepare_data(config.data, tokenizer, config.task_type, config.train.seed)
    notes.append(_about(data, config))
    # None where texts were learned as they stand: what lies beside the adapter says how to prompt.
    tokenizer.chat_template = data.chat_template
    model = _attach(config, data, checkpoint)

    hashes = _hashes(config)
    store = Store(
        output_dir,
        origin=_origin(config, hashes),
        save_beside=lambda folder: _save_beside(folder, tokenizer, data.label_names),
        keep=config.train.save_total_limit,
    )
    for callback in callbacks:
        for note in notes:
            callback.note(note)
    result = _fit(
        output_dir,
        model,
        data.train,
        data.eval,
        Collator(tokenizer, config.task_type),
        config.train,
        task_type=config.task_type,
        store=store,
        resume_from=checkpoint,
        callbacks=[_Folder(output_dir, config), *callbacks],
    )
    summary = _summary(config, data, model, result, hashes)
    store.save_adapter(model, output_dir)
    draw_losses(result.records, output_dir / "loss.png")
    write_text(
        output_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    )
    return TrainResult(output_dir, summary, model, tokenizer)


def _fit(output_dir: Path, *args: Any, **kwargs: Any) -> FitResult:
    """`fit`, with a stop by hand and a full GPU explained."""
    try:
        return fit(*args, **kwargs)
    except KeyboardInterrupt:
        found = checkpoints(output_dir)
        then = f"--resume goes on from {found[-1]}" if found else "there is no checkpoint yet"
        raise KeyboardInterrupt(f"stopped; {then}.") from None
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "The GPU has not enough memory. Halve `train.per_device_train_batch_size` and double "
            "`train.gradient_accumulation_steps` (the result is the same), or set "
            "`train.gradient_checkpointing=true`."
        ) from error


class _Folder(Callback):
    """Makes the output folder once nothing stands in the way of the first step."""

    def __init__(self, output_dir: Path, config: RunConfig) -> None:
        self.output_dir, self.config = output_dir, config

    def on_start(self, start: Start) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if not start.step:
            _clear(self.output_dir)
            write_text(self.output_dir / "run.yaml", dump_run_config(self.config))


def _clear(output_dir: Path) -> None:
    """Remove a former run; files that are not a run's stay."""
    for folder in [*checkpoints(output_dir), output_dir / "best"]:
        if (folder / "adapter_config.json").is_file():
            shutil.rmtree(folder)
    for name in _OF_A_RUN:
        (output_dir / name).unlink(missing_ok=True)


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


def _precision(wanted: bool | None) -> tuple[bool, str]:
    """Whether to hold the base model in bfloat16, and why."""
    if wanted is not None:
        return wanted, "as the run file says"
    if not torch.cuda.is_available():
        return False, "no CUDA GPU found"
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return True, f"{name} computes in it"
    return False, f"{name} does not compute in bfloat16"


def _within_positions(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[RunConfig, list[str]]:
    """The run with rows as long as the base model has positions for, and a note where that is less.

    Virtual tokens take positions too.

    Raises:
        ConfigError: They take all of them.
    """
    base = load_config(config.base_model, config.revision).get_text_config(decoder=True)
    known = (tokenizer.model_max_length, getattr(base, "max_position_embeddings", None))
    positions = min(limit for limit in known if limit is not None)
    adapter = config.adapter.peft_config(config.task_type)
    virtual = getattr(adapter, "num_virtual_tokens", 0)
    room = positions - virtual
    if config.data.max_length <= room:
        return config, []
    taken = f", {virtual:,} of them for virtual tokens" if virtual else ""
    if room < 2:
        raise ConfigError(
            f"{virtual:,} virtual tokens leave no room for text: {config.base_model} has "
            f"{positions:,} positions. Lower num_virtual_tokens."
        )
    data = config.data.model_copy(update={"max_length": room})
    note = f"data.max_length: {room:,} (the base model has {positions:,} positions{taken})"
    return config.model_copy(update={"data": data}), [note]


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


def _hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of each data file."""
    train = config.data.train
    paths = [train] if isinstance(train, str) else list(train)
    if config.data.eval is not None:
        paths.append(config.data.eval)
    out = {}
    for path in paths:
        with open(path, "rb") as file:
            out[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def _origin(config: RunConfig, hashes: dict[str, str]) -> dict[str, Any]:
    """What a resumed run must have in common with the one it goes on with, by dotted name."""
    raw = config.model_dump(mode="json")
    origin = {name: raw[name] for name in ("base_model", "revision", "task_type", "adapters")}
    for section in ("data", "train"):
        for name, value in raw[section].items():
            if name not in _FREE:
                origin[f"{section}.{name}"] = value
    return origin | {f"sha256 of {path}": digest for path, digest in hashes.items()}


def _summary(
    config: RunConfig,
    data: PreparedData,
    model: PeftModel,
    result: FitResult,
    hashes: dict[str, str],
) -> dict[str, Any]:
    trainable, every = model.get_nb_trainable_parameters()
    progress = result.progress
    return {
        "base_model": config.base_model,
        "task_type": str(config.task_type),
        "adapter": next(iter(config.adapters)),
        "method": config.adapter.method,
        "trainable_parameters": trainable,
        "all_parameters": every,
        "train_rows": len(data.train),
        "eval_rows": len(data.eval) if data.eval is not None else 0,
        "rows_dropped": data.rows_dropped,
        "rows_truncated": data.rows_truncated,
        "data_sha256": hashes,
        "label_names": data.label_names,
        "steps": progress.step,
        "rows_seen": progress.rows,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second,
        "peak_memory_gib": result.peak_memory_gib,
        "train_loss": progress.train_loss,
        "eval_before": progress.eval_before,
        "eval_last": progress.eval_last,
        "eval_best": progress.eval_best,
        "best_step": progress.best_step,
        "saved": "best" if config.train.load_best_model_at_end else "last",
        "stopped_early": result.stopped_early,
        "seed": config.train.seed,
        "learning_rate": config.train.learning_rate,
        "dtype": "bfloat16" if config.train.bf16 else "float32",
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("graft-peft", "torch", "transformers", "accelerate")
            },
        },
    }
