"""What `summary.json` says of an adapter's training."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from graft.adapt import PeftModel
from graft.training.loop import FitResult
from graft.training.setup import Lesson

__all__ = ["summary_of", "versions"]


def summary_of(
    model: PeftModel, name: str | None, lesson: Lesson, result: FitResult
) -> dict[str, Any]:
    """All that is known of the training of one adapter, as JSON's kinds of values.

    Args:
        model: The base model with the adapters.
        name: The adapter's in a run of several; None where it is the only one.
        lesson: What it learned.
        result: What came of it.
    """
    config, data, progress = lesson.config, lesson.data, result.progress
    trainable, every = model.get_nb_trainable_parameters()
    if name is not None:
        own = [parameter.numel() for parameter in model.adapter(name).parameters()]
        base = sum(parameter.numel() for parameter in model.base_model.parameters())
        trainable, every = sum(own), sum(own) + base
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
        "saved": _saved(config.train.load_best_model_at_end, result.failure),
        "stopped_early": result.stopped_early,
        "failure": result.failure,
        "seed": config.train.seed,
        "learning_rate": config.train.learning_rate,
        "dtype": "bfloat16" if config.train.bf16 else "float32",
        "versions": versions(),
    }


def _saved(best: bool, failure: str | None) -> str | None:
    """Which weights lie in the folder; None: none."""
    if failure is not None:
        return None
    return "best" if best else "last"


def versions() -> dict[str, str]:
    """Of Python and of what a result depends on."""
    names = ("graft-peft", "torch", "transformers", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
