"""A run file's run: the loop over what `setup` made, and the files that stay."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.atomic import write_text
from graft.hub import LABELS_NAME
from graft.training.config import RunConfig
from graft.training.loop import FitResult, TrainingError, fit
from graft.training.report import Callback, Start, draw_losses
from graft.training.runfile import dump_run_config
from graft.training.setup import Setup, set_up
from graft.training.state import checkpoints

__all__ = ["TrainResult", "train"]

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
    setup = set_up(config, resume, lambda text: _note(callbacks, text))
    output_dir = setup.output_dir
    for note in setup.notes:
        _note(callbacks, note)
    result = _fit(
        output_dir,
        **setup.for_fit(),
        callbacks=[_Folder(output_dir, setup.config), *callbacks],
    )
    summary = _summary(setup, result)
    setup.store.save_adapter(setup.model, output_dir)
    draw_losses(result.records, output_dir / "loss.png")
    write_text(
        output_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    )
    return TrainResult(output_dir, summary, setup.model, setup.tokenizer)


def _note(callbacks: Sequence[Callback], text: str) -> None:
    for callback in callbacks:
        callback.note(text)


def _fit(output_dir: Path, **kwargs: Any) -> FitResult:
    """`fit`, with a stop by hand and a full GPU explained."""
    try:
        return fit(**kwargs)
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


def _summary(setup: Setup, result: FitResult) -> dict[str, Any]:
    config, data = setup.config, setup.data
    trainable, every = setup.model.get_nb_trainable_parameters()
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
        "data_sha256": data.sha256,
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
