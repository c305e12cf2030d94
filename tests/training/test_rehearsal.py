from __future__ import annotations

import json
import shutil

import pytest
import torch

from graft.adapt import PeftModel
from graft.data.collate import Collator
from graft.errors import ConfigError, GraftError
from graft.methods import METHODS
from graft.training.batches import Order, make_batch
from graft.training.loop import TrainingError
from graft.training.rehearsal import dry_run, spark
from graft.training.run import train
from graft.training.runfile import parse_run_config
from tiny import tiny_llama

from .conftest import needed_fields
from .test_run import BAD, files_in


def written(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_tells_what_the_run_then_does(raw_run, tmp_path):
    raw_run["train"] |= {"max_steps": 5, "warmup_steps": 2, "logging_steps": 1}
    before = written(tmp_path)
    dry = dry_run(parse_run_config(raw_run))
    assert written(tmp_path) == before
    assert not (tmp_path / "out").exists()

    result = train(parse_run_config(raw_run))
    log = [line for line in _log(tmp_path / "out") if "loss" in line]
    (rehearsal,) = dry.rehearsals
    assert rehearsal.loss == pytest.approx(log[0]["loss"], rel=1e-6)
    assert rehearsal.rates == pytest.approx([line["learning_rate"] for line in log])
    start = rehearsal.learner.start(rehearsal.how)
    assert start.steps == result.summary["steps"]
    assert start.rows == result.summary["train_rows"]
    assert start.eval_rows == result.summary["eval_rows"]
    assert start.trainable == result.summary["trainable_parameters"]
    assert rehearsal.batch.tokens == log[0]["tokens"]
    text = "\n".join(dry.lines())
    for fact in (
        f"trains {start.trainable:,} of",
        f"rows: {start.rows} to train on, {start.eval_rows} to evaluate on",
        f"steps: 5; {rehearsal.learner.order.steps_per_epoch} an epoch, each of 4 rows",
        f"loss {log[0]['loss']:.4f}",
        "linear, 0 -> 0.01 (step 3) -> 0.00333",
        f"writes to: {tmp_path / 'out'}",
        "evaluates after each epoch, saves every 2 steps, logs every step",
    ):
        assert fact in text


def _log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", METHODS)
def test_nothing_is_learned(raw_run, kind):
    """Of any method, the rehearsed model is the one that a run starts with."""
    raw_run["adapters"] = {"a": {"method": kind.lower(), **needed_fields(kind)}}
    first, second = (dry_run(parse_run_config(raw_run)) for _ in range(2))
    assert first.rehearsals[0].loss == second.rehearsals[0].loss
    for name, weight in first.setup.model.state_dict().items():
        assert torch.equal(weight, second.setup.model.state_dict()[name])
    assert all(p.grad is None for p in first.setup.model.parameters())


def test_all_rows_of_a_step_are_of_the_order_of_the_run(raw_run):
    dry = dry_run(parse_run_config(raw_run))
    learned = dry.setup.lessons[None].data.train
    order = Order(len(learned), 4, dry.setup.config.train.seed)
    rows = [learned[i] for i in order.step(0)]
    task_type = dry.setup.config.task_type
    batch = make_batch(rows, Collator(dry.setup.tokenizer, task_type), task_type)
    assert torch.equal(dry.rehearsals[0].batch.inputs["input_ids"], batch.inputs["input_ids"])


@pytest.mark.parametrize("case", BAD)
def test_what_a_run_would_refuse_is_refused(raw_run, tmp_path, case):
    changes, error = BAD[case]
    raw_run["data"].pop("eval_fraction")
    for section, change in changes.items():
        raw_run[section] = {**raw_run["train"], **change} if section == "train" else change
    with pytest.raises(error) as caught:
        dry_run(parse_run_config(raw_run))
    assert isinstance(caught.value, GraftError)
    assert not (tmp_path / "out").exists()


def test_a_used_folder_and_going_on(raw_run, tmp_path):
    config = parse_run_config(raw_run)
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        dry_run(config, resume=True)
    train(config)
    before = written(tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        dry_run(config)
    dry = dry_run(config, resume=True)
    assert "steps: 4, 4 of them done" in "\n".join(dry.lines())
    assert "going on from checkpoint-4" in "\n".join(dry.lines())
    assert isinstance(dry.setup.model, PeftModel)
    raw_run["train"]["overwrite_output_dir"] = True
    assert "replacing the run that is there" in dry_run(parse_run_config(raw_run)).lines()[-1]
    assert written(tmp_path / "out") == before
    assert "run.yaml" in files_in(tmp_path / "out")


def test_a_loss_that_is_no_number(raw_run, base_folder, tmp_path):
    """A base model whose weights are broken says so before the first step."""
    shutil.copytree(base_folder, tmp_path / "broken")
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    raw_run["base_model"] = str(tmp_path / "broken")
    with pytest.raises(TrainingError, match="first batch is nan"):
        dry_run(parse_run_config(raw_run))


def test_spark():
    assert spark([0.0, 1.0]) == "▁█"
    assert spark([1.0]) == "█"
    assert spark([0.0, 0.0]) == "▁▁"
    rising = spark([i / 99 for i in range(100)])
    assert len(rising) == 30
    assert list(rising) == sorted(rising)
