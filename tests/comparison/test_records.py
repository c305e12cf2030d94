"""`results.json` and PEFT's shape of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from comparison.made import made
from comparison.test_spread import MEASURED
from graft.comparison.records import read_comparison, read_row, write_comparison, write_row
from graft.comparison.results import Comparison, Inference, Measured, Row, Sample
from graft.errors import CheckpointError

# What the code beside PEFT's own results reads of each (method_comparison/processing.py).
READ_BY_PEFT = {
    "run_info": {
        "created_at", "total_time", "experiment_name", "peft_branch", "train_config",
        "peft_config", "error_msg",
    },
    "train_info": {
        "accelerator_memory_reserved_avg", "accelerator_memory_max",
        "accelerator_memory_reserved_99th", "train_time", "file_size", "num_trainable_params",
        "num_total_params", "status", "metrics",
    },
    "meta_info": {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"},
}  # fmt: skip
OF_THE_LAST_METRICS = {"test accuracy", "train loss", "train samples", "train total tokens"}
CONFIG = {
    "base_model": "base",
    "revision": None,
    "data": {"max_length": 32},
    "compare": {"max_new_tokens": 64},
    "train": {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 3,
        "eval_steps": None,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
    },
}


def row(measured: Measured | None, **changes) -> Row:
    made = Row(
        point="low",
        seed=1,
        folder="low/seed-1",
        config=CONFIG,
        peft_config={"peft_type": "LORA", "r": 2},
        data_sha256={"rows.jsonl": "ab" * 32},
        created_at="2026-11-25T10:20:30+00:00",
        measured=measured,
    )
    return replace(made, **changes)


def found(*rows: Row) -> Comparison:
    return made({"low": [1.0]}, rows=rows, planned=len(rows))


def test_a_record_has_what_peft_reads(tmp_path):
    log = ({"step": 2, "loss": 1.5}, {"step": 3, "eval_loss": 1.0, "eval_accuracy": 0.5})
    measured = replace(MEASURED, quality={"loss": 1.0, "accuracy": 0.75}, log=log, forgetting=0.25)
    write_comparison(found(row(measured)), tmp_path)
    (record,) = json.loads((tmp_path / "results.json").read_text())["results"]
    for section, names in READ_BY_PEFT.items():
        assert names <= record[section].keys()
    info = record["train_info"]
    assert (info["status"], info["train_time"], info["file_size"]) == ("success", 2.0, 40)
    first, last = info["metrics"]
    assert (first["step"], first["valid accuracy"]) == (3, 0.5)
    assert last.keys() >= OF_THE_LAST_METRICS
    assert (last["test accuracy"], last["forgetting"], last["train loss"]) == (0.75, 0.25, 1.5)
    assert record["run_info"]["experiment_name"] == "lora/low--seed-1"
    assert record["run_info"]["train_config"]["optimizer_kwargs"]["lr"] == 1e-2


def test_full_fine_tuning_has_no_peft_config(tmp_path):
    write_comparison(found(row(MEASURED, point="full", peft_config=None)), tmp_path)
    (record,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert record["run_info"]["peft_config"] is None  # how PEFT tells full fine-tuning
    assert record["run_info"]["experiment_name"] == "full/full--seed-1"


def test_a_failure_is_no_success(tmp_path):
    write_comparison(found(row(None, error="no number")), tmp_path)
    (record,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert record["train_info"]["status"] == "failed"
    assert record["run_info"]["error_msg"] == "no number"


def test_what_is_written_is_read(tmp_path):
    samples = (Sample("a", "b", "c", "d"), Sample("a", None, "", "<b>\u2028"))
    measured = replace(MEASURED, samples=samples, inference=Inference("rows/s", 2.0, 3.0))
    whole = found(row(measured), row(None, seed=2, error="no number"))
    write_comparison(whole, tmp_path)
    assert read_comparison(tmp_path) == whole
    assert read_comparison(tmp_path / "results.json") == whole
    for one in whole.rows:
        write_row(one, tmp_path / one.folder)
        assert read_row(tmp_path / one.folder) == one
    assert read_row(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"results": [{}], "graft": {}}'])
def test_what_is_broken_is_said(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"results\.json"):
        read_comparison(tmp_path)
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result\.json"):
        read_row(tmp_path)


def test_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="There is no"):
        read_comparison(tmp_path)
