"""`results.json`: a comparison as PEFT's own comparison of methods writes its results, and back.

Each row is a record of the shape in PEFT's `method_comparison/*/results/*.json`, so that what reads
those reads these; what PEFT has no place for is in the record's `graft`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from graft.atomic import write_text
from graft.comparison.results import FULL, Comparison, Row
from graft.errors import CheckpointError

__all__ = ["RESULTS_NAME", "read_comparison", "read_row", "write_comparison", "write_row"]

RESULTS_NAME = "results.json"
_ROW_NAME = "result.json"


def write_comparison(found: Comparison, folder: Path) -> None:
    """Write `results.json` into `folder`, whole or not at all."""
    whole = dataclasses.asdict(found)
    del whole["rows"]
    records = [_record(row, found) for row in found.rows]
    _write(folder / RESULTS_NAME, {"results": records, "graft": whole})


def read_comparison(path: Path) -> Comparison:
    """The comparison in the folder or file `path`.

    Raises:
        CheckpointError: There is none, or it is broken.
    """
    file = path / RESULTS_NAME if path.is_dir() else path
    raw = _read(file)
    try:
        rows = [record["graft"] for record in raw["results"]]
        return TypeAdapter(Comparison).validate_python({**raw["graft"], "rows": rows})
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{file} holds no comparison: {_first(error)}.") from None


def write_row(row: Row, folder: Path) -> None:
    """Write what is known of a row that is done into its folder."""
    _write(folder / _ROW_NAME, dataclasses.asdict(row))


def read_row(folder: Path) -> Row | None:
    """The row that `folder` holds; None where it is not done.

    Raises:
        CheckpointError: A broken file.
    """
    if not (folder / _ROW_NAME).is_file():
        return None
    try:
        return TypeAdapter(Row).validate_python(_read(folder / _ROW_NAME))
    except ValidationError as error:
        raise CheckpointError(f"{folder / _ROW_NAME} is broken: {_first(error)}.") from None


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_text(path, text + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"There is no {path}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first(error)}.") from None


def _record(row: Row, found: Comparison) -> dict[str, Any]:
    """The row in PEFT's shape, by PEFT's names."""
    measured, train = row.measured, row.config["train"]
    return {
        "run_info": {
            "created_at": row.created_at,
            "total_time": measured.total_seconds if measured else 0.0,
            "experiment_name": f"{_method(row)}/{row.point}--seed-{row.seed}",
            "peft_branch": "",
            "train_config": {
                "model_id": found.base.name,
                "dtype": found.base.dtype,
                "max_seq_length": row.config["data"]["max_length"],
                "batch_size": train["per_device_train_batch_size"],
                "batch_size_eval": train["per_device_eval_batch_size"],
                "max_steps": measured.steps if measured else train["max_steps"],
                "eval_steps": train["eval_steps"],
                "compile": False,
                "use_gc": train["gradient_checkpointing"],
                "seed": row.seed,
                "grad_norm_clip": train["max_grad_norm"],
                "optimizer_type": "AdamW",
                "optimizer_kwargs": {
                    "lr": train["learning_rate"],
                    "weight_decay": train["weight_decay"],
                },
                "lr_scheduler": train["lr_scheduler_type"],
                "use_amp": False,
                "autocast_adapter_dtype": True,
                "generation_kwargs": {"max_new_tokens": row.config["compare"]["max_new_tokens"]},
                "attn_implementation": None,
            },
            "peft_config": row.peft_config,
            "error_msg": row.error,
        },
        "train_info": _train_info(row),
        "meta_info": {
            "model_info": {"sha": row.config["revision"], "created_at": None},
            "dataset_info": {
                path: {"sha": digest, "created_at": None}
                for path, digest in row.data_sha256.items()
            },
            "package_info": {
                f"{name}-version": found.versions.get(name)
                for name in (
                    "graft-peft",
                    "transformers",
                    "peft",
                    "datasets",
                    "bitsandbytes",
                    "torch",
                )
            },
            "system_info": found.system,
            "pytorch_info": "",
        },
        "graft": dataclasses.asdict(row),
    }


def _method(row: Row) -> str:
    return FULL if row.peft_config is None else str(row.peft_config["peft_type"]).lower()


def _train_info(row: Row) -> dict[str, Any]:
    measured = row.measured
    if measured is None:
        return {"status": "failed", "metrics": []}
    losses = [record for record in measured.log if "loss" in record]
    metrics = [
        {
            "step": record["step"],
            "valid loss": record["eval_loss"],
            "valid accuracy": record.get("eval_accuracy"),
        }
        for record in measured.log
        if "eval_loss" in record
    ]
    score = measured.quality.get("accuracy", measured.quality.get("exact_match"))
    last = {
        "step": measured.steps,
        "test accuracy": score,
        **{f"test {name}": v for name, v in measured.quality.items() if name != "accuracy"},
        "train loss": losses[-1]["loss"] if losses else None,
        "train samples": measured.rows,
        "train total tokens": measured.tokens,
        "forgetting": measured.forgetting,
    }
    return {
        "accelerator_memory_reserved_avg": measured.average_bytes,
        "accelerator_memory_max": measured.peak_bytes,
        "accelerator_memory_reserved_99th": measured.high_bytes,
        "train_time": measured.seconds,
        "file_size": measured.adapter_bytes,
        "num_trainable_params": measured.trainable_parameters,
        "num_total_params": measured.all_parameters,
        "status": "success",
        "metrics": [*metrics, last],
    }
