from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import graft
from graft.config import TaskType
from graft.data.prepare import prepare_data
from graft.errors import ConfigError, PlanError
from graft.hub import load_config
from graft.methods import method_names
from graft.planning.device import Device, this_device
from graft.planning.fitting import fitting_change, fitting_text
from graft.planning.memory import KINDS
from graft.planning.plan import Plan, plan_of_run
from graft.planning.question import question_of_model
from graft.planning.record import plan_record
from graft.planning.setting import Row, Setting
from graft.planning.step import trace_step
from graft.planning.timeline import draw_timeline
from graft.training.batches import Order
from graft.training.runfile import load_run_config
from tiny import SENTENCES, make_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def run_file(base_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    cut = [(s[: 2 + i % 8], s[2 + i % 8 :]) for i, s in enumerate(SENTENCES)]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in cut]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "r": 2, "target_modules": "all-linear"}},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 48},
        "train": {
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "bf16": False,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def processor(free: int = 2**40) -> Device:
    """This machine's, with so much memory, and no time to tell."""
    here = this_device()
    margin = replace(here.margin, bytes=0, share=0.0)
    return replace(here, here=False, rates={}, margin=margin, total_bytes=free, free_bytes=free)


@pytest.fixture(scope="module")
def whole(run_file) -> Plan:
    return graft.plan(run_file, precision="fp32", device=processor())


def batches(path: Path) -> list[list[Row]]:
    """The forward passes of one epoch, as training makes them."""
    config = load_run_config(path)
    data = prepare_data(config.data, make_tokenizer(), config.task_type, config.train.seed)
    rows = [
        Row(len(row["input_ids"]), sum(label != -100 for label in row["labels"][1:]))
        for row in data.train
    ]
    size = config.train.per_device_train_batch_size
    order = Order(len(rows), size, config.train.seed)
    return [[rows[i] for i in order.step(step)] for step in range(order.steps_per_epoch)]


def test_a_run_is_planned_by_its_own_longest_batch(run_file, whole):
    config = load_run_config(run_file)
    drawn = batches(run_file)
    longest = max(drawn, key=lambda rows: sum(row.tokens for row in rows))
    setting = Setting(
        config=load_config(config.base_model),
        task_type=TaskType.CAUSAL_LM,
        batches=(tuple(longest),),
        adapters={"own": config.adapters["own"].peft_config(config.task_type)},
    )
    memory = trace_step(setting).memory
    assert whole.case.memory == memory
    assert whole.case.peak == sum(getattr(memory, kind) for kind in KINDS)
    tokens = sorted(sum(row.tokens for row in rows) for rows in drawn)
    assert list(whole.case.workload.sizes) == tokens
    assert whole.case.workload.tokens == sum(tokens) / len(tokens)


def test_what_a_plan_says_as_data(run_file):
    found = graft.plan(run_file, device=processor())
    record = json.loads(json.dumps(plan_record(found)))
    assert record["peak_bytes"] == found.case.peak == found.forecast().peak_bytes
    assert record["peak_bytes"] == sum(record[f"{kind}_bytes"] for kind in KINDS)
    assert record["parameters"] == found.parameters == tiny_llama().num_parameters()
    assert record["fits"] is found.fits is True
    ways = {
        (each["precision"], each["gradient_checkpointing"])
        for each in (*record["cases"], *record["alternatives"])
    }
    assert ways == set(itertools.product(("fp32", "bf16", "8-bit", "4-bit"), (False, True)))
    by = {
        (each["precision"], each["gradient_checkpointing"]): each["peak_bytes"]
        for each in (*record["cases"], *record["alternatives"])
    }
    assert by["fp32", False] > by["bf16", False]
    assert by["fp32", False] > by["fp32", True]


def test_with_a_model_alone_every_method_is_asked_for(base_folder):
    asked = question_of_model(str(base_folder), ["r=3", "num_virtual_tokens=5"], processor())
    assert [learner.name for learner in asked.learners] == [*method_names(), "full"]
    configs = {each.name: config for each in asked.learners for config in each.adapters.values()}
    assert configs["lora"].r == 3
    assert {getattr(config, "num_virtual_tokens", 5) for config in configs.values()} == {5}


def test_methods_side_by_side_are_planned_as_each_alone(base_folder):
    def plan(method: str) -> Plan:
        return graft.plan(base_folder, ["r=3"], method=method, length=12, batch_size=2,
                          precision="fp32", device=processor())  # fmt: skip

    found = plan("prompt-tuning,lora,full")
    assert [case.learner.name for case in found.cases] == ["prompt_tuning", "lora", "full"]
    for case in found.cases:
        assert case.workload.longest == (Row(12, 11),) * 2
        assert case.base_parameters == tiny_llama().num_parameters()
    _, lora, full = found.cases
    assert full.memory.adapter == 0
    assert full.memory.optimizer > lora.memory.optimizer
    assert plan("lora").case.peak == lora.peak


def test_a_method_that_a_model_cannot_have_is_told_beside_the_others(bert_folder):
    found = graft.plan(bert_folder, ["target_modules=query,nothing_like_it"], length=8,
                       batch_size=2, task_type="SEQ_CLS", method="lora,bitfit,full",
                       device=processor())  # fmt: skip
    lora, bitfit, full = found.cases
    assert "nothing_like_it" in str(lora.problem)
    assert bitfit.problem is None or "nothing_like_it" in bitfit.problem
    assert full.problem is None


def test_each_change_that_makes_a_run_fit_is_a_run_file_that_does(run_file, whole, tmp_path):
    small = processor(whole.case.kept + (whole.case.peak - whole.case.kept) * 2 // 3)
    found = graft.plan(run_file, precision="fp32", device=small)
    assert not found.fits
    assert "does not fit" in found.verdict()
    writable = [change for change in found.advice if change.overrides is not None]
    assert writable
    assert "train.per_device_train_batch_size=2" in (writable[0].overrides or ())
    assert all(small.fits(change.case.peak) for change in found.advice)
    again = graft.plan(run_file, writable[0].overrides or (), precision="fp32", device=small)
    assert again.case.peak == writable[0].case.peak
    assert any("lora" in change.words for change in found.advice if change.overrides is None)

    text = fitting_text(run_file, ["seed=3"], fitting_change(found))
    (tmp_path / "fit.yaml").write_text(text)
    config = load_run_config(tmp_path / "fit.yaml")
    assert (config.train.per_device_train_batch_size, config.train.seed) == (2, 3)
    assert config.train.gradient_accumulation_steps == 2


def test_where_nothing_makes_it_fit_that_is_said(run_file, whole):
    found = graft.plan(run_file, precision="fp32", device=processor(whole.case.memory.weights // 8))
    assert not any(found.device.fits(change.case.peak) for change in found.advice)
    assert "smaller model" in found.verdict()
    with pytest.raises(PlanError, match="No setting"):
        fitting_change(found)


def test_adapters_of_a_joint_run_share_its_passes(run_file, whole, tmp_path):
    raw = yaml.safe_load(run_file.read_text())
    raw["adapters"] = {
        "own": raw["adapters"]["own"],
        "other": {
            "method": "prefix_tuning",
            "num_virtual_tokens": 3,
            "train": {"per_device_train_batch_size": 2},
        },
    }
    (tmp_path / "joint.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    found = graft.plan(tmp_path / "joint.yaml", precision="fp32", device=processor())
    rows = found.case.workload.longest
    assert {row.adapter for row in rows} == {"own", "other"}
    assert len([row for row in rows if row.adapter == "other"]) <= 2
    assert found.case.learner.name == "lora + prefix_tuning"
    assert found.case.memory.weights == whole.case.memory.weights
    assert found.case.memory.adapter > whole.case.memory.adapter


@pytest.mark.parametrize("asked", [{"method": "lora"}, {"length": 16}])
def test_one_method_or_length_does_not_stand_for_several_adapters(run_file, asked, tmp_path):
    run = yaml.safe_load(run_file.read_text())
    run["adapters"]["other"] = {"method": "ia3"}
    path = tmp_path / "joint.yaml"
    path.write_text(yaml.safe_dump(run))
    with pytest.raises(ConfigError, match=f"2 adapters.*{next(iter(asked))}"):
        graft.plan(path, **asked, device=processor())


def test_a_plan_never_stops_a_run(run_file):
    config = load_run_config(run_file, ["base_model=/no/such/folder"])
    assert plan_of_run(config) is None


def test_the_course_of_a_step_is_drawn(base_folder, tmp_path):
    found = graft.plan(base_folder, length=12, batch_size=2, method="lora",
                       precision="fp32", device=processor())  # fmt: skip
    draw_timeline(found, tmp_path / "new" / "step.png")
    image = (tmp_path / "new" / "step.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    phases = {moment.phase.partition(",")[0] for moment in found.case.memory.timeline}
    assert {"forward", "backward", "optimizer"} <= phases
