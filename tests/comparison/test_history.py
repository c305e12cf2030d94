from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from comparison.made import made
from graft.comparison.difference import difference
from graft.comparison.history import find_runs, read_run
from graft.comparison.records import write_comparison, write_row
from graft.comparison.written import is_run
from graft.errors import ConfigError

SETTINGS = {
    "base_model": "a/base",
    "adapters": {"mine": {"method": "lora", "r": 8}},
    "train": {"output_dir": "out", "learning_rate": 1e-3, "seed": 1},
}
SUMMARY = {
    "base_model": "a/base",
    "method": "lora",
    "steps": 20,
    "seconds": 2.5,
    "peak_memory_gib": 0.75,
    "eval_before": {"loss": 4.0},
    "eval_last": {"loss": 2.0},
    "eval_best": {"loss": 1.5},
    "saved": "last",
    "data_sha256": {"rows.jsonl": "aa"},
    "versions": {"torch": "2.13"},
}
LOG = [
    {"step": 0, "eval_loss": 4.0},
    {"step": 10, "loss": 3.0, "seconds": 1.25, "peak_memory_gib": 0.5},
    {"step": 10, "eval_loss": 2.5},
]


def write_run(folder: Path, settings=SETTINGS, summary=SUMMARY, log=LOG, age: int = 0) -> Path:
    """The files of a run; None for one that is not there, a text for one that holds this."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        log if isinstance(log, str) or log is None else "".join(json.dumps(r) + "\n" for r in log)
    )
    contents = {
        "run.yaml": settings if isinstance(settings, str) else settings and yaml.dump(settings),
        "summary.json": summary if isinstance(summary, str) else summary and json.dumps(summary),
        "train_log.jsonl": lines,
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content)
            os.utime(folder / name, (1e9 - age, 1e9 - age))
    return folder


def test_a_finished_run_tells_what_it_came_to(tmp_path):
    run = read_run(write_run(tmp_path))
    assert (run.kind, run.problems) == ("run", ())
    assert (run.base_model, run.method, run.steps) == ("a/base", "lora", 20)
    assert (run.loss_before, run.loss_after) == (4.0, 2.0)
    assert (run.seconds, run.peak_memory_gib) == (2.5, 0.75)
    assert run.date.timestamp() == 1e9
    assert list(run.records) == LOG


def test_the_loss_is_that_of_the_adapter_that_was_kept(tmp_path):
    assert read_run(write_run(tmp_path, summary=SUMMARY | {"saved": "best"})).loss_after == 1.5


def test_a_run_under_way_tells_what_its_log_says(tmp_path):
    run = read_run(write_run(tmp_path, summary=None))
    assert run.problems == ("stopped or still under way: no summary.json yet",)
    assert (run.base_model, run.method, run.steps) == ("a/base", "lora", 10)
    assert (run.loss_before, run.loss_after) == (4.0, 2.5)
    assert (run.seconds, run.peak_memory_gib) == (1.25, 0.5)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"summary": "{"}, "summary.json is broken: not JSON"),
        ({"summary": "[" * 100_000}, "summary.json is broken: not JSON"),
        ({"summary": "[1]"}, "summary.json is broken: no object in it"),
        ({"summary": SUMMARY | {"failure": "NaN."}}, "failed: NaN."),
        ({"settings": None}, "no run.yaml"),
        ({"settings": "a: [1"}, "run.yaml is not valid YAML"),
        ({"settings": "- 1"}, "run.yaml holds a list"),
        ({"settings": "adapters: 3", "log": "3"}, "train_log.jsonl is broken at line 1"),
        ({"log": '{"step": 1}\n[2]\n{"ste'}, "train_log.jsonl is broken at line 2, and 1 more"),
        ({"log": None}, "no train_log.jsonl"),
    ],
)
def test_what_is_broken_is_said_and_the_run_is_listed(tmp_path, files, problem):
    write_run(tmp_path / "broken", **files)
    write_run(tmp_path / "whole")
    runs, _ = find_runs(tmp_path)
    found = {run.folder.name: run.problems for run in runs}
    assert found["whole"] == ()
    (said,) = found["broken"]
    assert problem in said


@pytest.mark.parametrize("value", ["x", None, [1], {"loss": "x"}, True, {"loss": {}}])
def test_values_of_another_kind_are_no_numbers(tmp_path, value):
    odd = dict.fromkeys(SUMMARY, value) | {"eval_last": value, "saved": value}
    run = read_run(write_run(tmp_path, summary=odd, log=[{"step": value, "eval_loss": value}]))
    numbers = (run.steps, run.loss_before, run.loss_after, run.seconds, run.peak_memory_gib)
    assert numbers == (None,) * 5
    assert read_run(write_run(tmp_path, summary=None, log=[{"step": value}])).steps is None
    difference(run, run)


def test_runs_are_found_below_a_folder_oldest_first(tmp_path):
    write_run(tmp_path / "new", age=10)
    write_run(tmp_path / "deep" / "er" / "old", age=30)
    write_run(tmp_path / "middle", age=20)
    write_run(tmp_path / "middle" / "checkpoint-5", age=90)
    write_run(tmp_path / "middle" / "best", age=90)
    write_run(tmp_path / ".hidden" / "run", age=90)
    (tmp_path / "no run").mkdir()
    (tmp_path / "no run" / "run.yaml").write_text(yaml.dump(SETTINGS))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")  # of some other program
    runs, unreadable = find_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["old", "middle", "new"]
    assert unreadable == []


def test_a_joint_run_stands_before_its_adapters(tmp_path):
    adapters = {"a": {"method": "lora"}, "b": {"method": "ia3"}, "c": {"method": "lora"}}
    write_run(tmp_path / "later", age=5)
    together = tmp_path / "together"
    for name, age in (("b", 30), ("a", 40)):
        write_run(together / name, age=age)
    summary = {"adapters": {"a": SUMMARY, "b": SUMMARY}, "seconds": 7.0, "base_model": "a/base"}
    write_run(together, SETTINGS | {"adapters": adapters}, summary, log=None, age=20)
    runs, _ = find_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["together", "a", "b", "later"]
    assert (runs[0].kind, runs[0].method, runs[0].seconds) == ("joint run", "lora, ia3", 7.0)
    assert runs[0].problems == ()


def compared(folder: Path, **changes):
    """The files of a comparison, as `graft compare` leaves them."""
    found = made({"a": [1.0, 1.5], "b": [2.0, None]}, **changes)
    (folder / "run.yaml").write_text(yaml.dump(SETTINGS))
    wanted = ("per_device_train_batch_size", "per_device_eval_batch_size", "eval_steps",
              "gradient_checkpointing", "max_grad_norm", "learning_rate", "weight_decay",
              "lr_scheduler_type")  # fmt: skip
    for row in found.rows:  # what PEFT's shape of the results wants of a run
        row.config["data"] = {"max_length": 8}
        row.config["compare"] = {"max_new_tokens": 4}
        row.config["revision"] = None
        row.config["train"] |= dict.fromkeys(wanted)
    write_comparison(found, folder)
    return found


def test_a_comparison_is_read_from_its_results(tmp_path):
    found = compared(tmp_path)
    run = read_run(tmp_path)
    assert (run.kind, run.base_model) == ("comparison", "a/base")
    assert run.problems == ("1 of 4 runs failed",)
    assert run.seconds == sum(row.measured.total_seconds for row in found.rows if row.measured)
    assert run.peak_memory_gib == 3.0
    assert run.summary["points"]["a"]["loss"] == 1.25
    (tmp_path / "results.json").write_text('{"results": [], "graft": 3}')
    assert read_run(tmp_path).problems == ("results.json is broken: no comparison in it",)


def test_a_comparison_that_is_not_done_says_so(tmp_path):
    compared(tmp_path, planned=6)
    assert read_run(tmp_path).problems[1] == "stopped or still under way: 4 of 6 runs are done"
    assert not read_run(tmp_path).finished
    compared(tmp_path)
    assert read_run(tmp_path).finished


def test_full_fine_tuning_is_read_from_its_row(tmp_path):
    found = compared(tmp_path)
    write_run(tmp_path / "full", None, None, LOG)
    write_row(found.rows[0], tmp_path / "full")
    run = read_run(tmp_path / "full")
    assert (run.problems, run.method, run.base_model) == ((), "full", "a/base")
    assert (run.steps, run.loss_before, run.loss_after) == (20, 4.0, 1.0)
    write_row(found.rows[3], tmp_path / "full")
    assert read_run(tmp_path / "full").problems == ("failed: The loss is gone.",)
    (tmp_path / "full" / "result.json").write_text('{"measured": 3}')
    (problem,) = read_run(tmp_path / "full").problems
    assert problem == "result.json is broken: no row of a comparison in it"


def test_a_point_that_failed_is_not_under_way(tmp_path):
    found = compared(tmp_path)
    folder = write_run(tmp_path / "point", SETTINGS, None, LOG)
    write_row(found.rows[3], folder)
    run = read_run(folder)
    assert (run.problems, run.finished) == (("failed: The loss is gone.",), True)


def test_links_are_followed_once(tmp_path):
    write_run(tmp_path / "elsewhere" / "run")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(runs, target_is_directory=True)
    found, _ = find_runs(runs)
    assert [run.folder for run in found] == [runs / "linked" / "run"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert find_runs(tmp_path)[1] == [f"{locked} cannot be read: Permission denied."]


def test_folders_that_are_none(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"There is no folder .*rusn. Did you mean .*runs"):
        find_runs(tmp_path / "rusn")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        find_runs(tmp_path / "file")
    assert not is_run(tmp_path)
    with pytest.raises(ConfigError, match="is no run"):
        read_run(tmp_path)


# --- what differs -----------------------------------------------------------------------------


def differ(tmp_path, settings=SETTINGS, summary=SUMMARY):
    a = read_run(write_run(tmp_path / "a"))
    return difference(a, read_run(write_run(tmp_path / "b", settings, summary)))


def test_a_run_does_not_differ_from_its_copy(tmp_path):
    moved = SETTINGS | {"train": SETTINGS["train"] | {"output_dir": "elsewhere"}}
    told = differ(tmp_path, moved, SUMMARY | {"data_sha256": {"moved/rows.jsonl": "aa"}})
    assert (told.settings, told.data, told.versions, told.results) == ({}, {}, {}, {})
    assert "steps" in told.same


def test_what_differs_is_told_by_key(tmp_path):
    settings = SETTINGS | {
        "adapters": {"yours": {"method": "lora", "r": 16, "alpha": None}},
        "train": SETTINGS["train"] | {"seed": 2, "new": None},
    }
    summary = SUMMARY | {
        "data_sha256": {"rows.jsonl": "bb", "more.jsonl": "cc"},
        "versions": {"torch": "2.14"},
        "eval_last": {"loss": 1.75},
        "seed": 2,
        "steps": 40,
    }
    told = differ(tmp_path, settings, summary)
    assert told.settings == {
        "adapter.name": ("mine", "yours"),
        "adapter.r": (8, 16),
        "train.seed": (1, 2),
    }
    assert told.data == {"rows.jsonl": ("aa", "bb"), "more.jsonl": (None, "cc")}
    assert told.versions == {"torch": ("2.13", "2.14")}
    assert told.results == {"steps": (20, 40), "eval_last.loss": (2.0, 1.75)}
    assert told.same == ("seconds", "peak_memory_gib", "eval_before.loss", "eval_best.loss")


def test_adapters_of_a_joint_run_are_told_apart(tmp_path):
    settings = SETTINGS | {"adapters": {"a": {"method": "lora"}, "b": {"method": "ia3"}}}
    summary = {"adapters": {"a": SUMMARY, "b": SUMMARY | {"data_sha256": {"b.jsonl": "bb"}}}}
    told = differ(tmp_path, settings, summary)
    assert told.settings["adapters.b.method"] == (None, "ia3")
    assert told.data == {"b.jsonl": (None, "bb")}
    assert told.results["adapters.a.steps"] == (None, 20)
