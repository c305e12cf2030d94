from __future__ import annotations

import json

import pytest

from graft.training.draft import draft
from graft.training.runfile import load_run_config
from tiny import SENTENCES


@pytest.fixture
def data(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "orders.jsonl"


def test_from_a_model_and_a_file_to_a_dry_run(graft, base_folder, data, tmp_path, capsys):
    assert graft("init", base_folder, data) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "run.yaml").read_text() == draft(str(base_folder), data).text
    for told in (
        "LlamaForCausalLM",
        f"{len(SENTENCES)} rows of prompt_completion",
        "wrote run.yaml. Next:",
        "graft data check run.yaml",
        "graft data preview run.yaml",
        "graft train run.yaml --dry-run",
    ):
        assert told in out
    assert graft("train", "run.yaml", "--dry-run") == 0
    assert "writes to: runs/orders" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_there_stays(graft, base_folder, data, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("mine")
    assert graft("init", base_folder, data) == 2
    assert "run.yaml exists; give another name by --output, or replace it by --force" in (
        capsys.readouterr().err
    )
    for words in (["./nowhere", data], [base_folder, "nowhere.jsonl"]):
        assert graft("init", *words, "--force") == 2
        assert "nowhere" in capsys.readouterr().err
    assert (tmp_path / "run.yaml").read_text() == "mine"
    assert graft("init", base_folder, data, "--force", "--method", "ia3") == 0
    assert load_run_config("run.yaml").adapter.method == "ia3"
    assert graft("init", base_folder, data, "--output", tmp_path, "--force") == 2
    assert "is a folder" in capsys.readouterr().err
    words = ["--output", "new/own.yaml", "--task-type", "SEQ_CLS"]
    assert graft("init", base_folder, data, *words) == 2
    assert "SEQ_CLS needs one of" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
