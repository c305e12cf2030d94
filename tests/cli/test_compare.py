"""`graft compare` on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from graft.comparison.records import read_comparison
from tiny import SENTENCES

LORA = {"method": "lora", "r": 2, "target_modules": "all-linear"}


@pytest.fixture
def run_file(base_folder, tmp_path) -> Path:
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    raw = {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"low": LORA, "scaled": {"method": "ia3"}},
        "data": {"train": str(data), "eval_fraction": 0.2, "max_length": 32},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 2, "logging_steps": 1},
        "grid": {"adapters.low.r": [2, 3]},
        "compare": {"speed_tokens": 2, "speed_rows": 2, "answers": 2, "samples": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_comparison(graft, run_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert graft("compare", run_file, "seeds=2") == 0
    told = capsys.readouterr().out
    assert "[6/6] scaled, seed 43" in told
    for name in ("low r=2", "low r=3", "scaled"):
        assert name in told
    found = read_comparison(out)
    assert [group.point.name for group in found.groups] == ["low r=2", "low r=3", "scaled"]
    assert list(csv.reader((out / "results.csv").open()))
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert list(out.glob("*.png"))

    assert graft("compare", run_file, "seeds=2") == 2
    assert "--resume" in capsys.readouterr().err
    assert graft("compare", run_file, "seeds=2", "--resume") == 0
    assert capsys.readouterr().out.count("done already") == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare.sedes=2"], "Did you mean seeds?"),
        (["grid.adapters.low.rnk=[1, 2]"], "no setting `adapters.low.rnk`"),
        (["seeds=34"], "--yes"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["adapters.low.method=prefix_tunin"], "Did you mean prefix_tuning"),
    ],
)
def test_what_the_user_can_mend(graft, run_file, tmp_path, capsys, words, said):
    assert graft("compare", run_file, *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert not (tmp_path / "out").exists()


def test_two_adapters_with_one_name(graft, run_file, tmp_path, capsys):
    text = run_file.read_text().replace("adapters:\n", "adapters:\n  low: {method: ia3}\n")
    run_file.write_text(text)
    assert graft("compare", run_file) == 2
    assert "`low` is given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_every_run_fails(graft, run_file, capsys):
    lora = "method: lora, r: 2, target_modules: all-linear, learning_rate: 1e30"
    wild = f"adapters={{low: {{{lora}}}}}"
    assert graft("compare", run_file, wild, "train.max_steps=3") == 1
    assert "every run failed" in capsys.readouterr().err


def test_train_says_whose_sections_these_are(graft, run_file, capsys):
    assert graft("train", run_file) == 2
    assert "graft compare" in capsys.readouterr().err
