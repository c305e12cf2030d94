from __future__ import annotations

from graft.training.conversion import convert
from graft.training.runfile import load_run_config

THEIRS = """
model_name_or_path: org/base
finetuning_type: lora
dataset: alpaca
template: qwen
output_dir: out
report_to: none
deepspeed: z3.json
"""


def test_writes_a_run_file_and_tells_what_is_lost(graft, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    assert graft("convert", "theirs.yaml") == 0
    out = capsys.readouterr().out
    done = convert("theirs.yaml")
    assert (tmp_path / "run.yaml").read_text() == done.text()
    assert load_run_config("run.yaml").base_model == "org/base"
    for told in (
        "theirs.yaml (LLaMA-Factory) -> run.yaml: 4 settings carried over.",
        "lora_alpha: 16",
        "report_to",
        "\n  template: qwen\n",
        "\n  deepspeed: z3.json\n      graft trains on one device",
        "Next: graft train run.yaml --dry-run",
    ):
        assert told in out
    assert max(len(line) for line in out.splitlines()) <= 80

    assert graft("convert", "theirs.yaml") == 2
    assert "run.yaml exists" in capsys.readouterr().err
    (tmp_path / "theirs.yaml").write_text(THEIRS.replace("org/base", "org/other"))
    assert graft("convert", "theirs.yaml", "--force") == 0
    assert load_run_config("run.yaml").base_model == "org/other"
    assert graft("convert", "theirs.yaml", "--output", "new/own.yaml") == 0
    assert (tmp_path / "new" / "own.yaml").is_file()


def test_a_file_of_nothing(graft, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    assert graft("convert", tmp_path / "x.yaml", "--output", tmp_path / "run.yaml") == 2
    assert "of no tool that graft knows" in capsys.readouterr().err
    assert not (tmp_path / "run.yaml").exists()
