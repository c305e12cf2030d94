from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from graft.planning.memory import KINDS
from graft.training.runfile import load_run_config
from tiny import SENTENCES

# Not this machine: nothing has to be timed.
ON = ["--device", "A100-40GB"]


@pytest.fixture
def config_alone(base_folder, tmp_path) -> Path:
    """The model without its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(base_folder / "config.json", folder)
    return folder


@pytest.fixture
def run_file(base_folder, tmp_path) -> Path:
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "target_modules": "all-linear"}},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def test_the_arithmetic_of_the_tutorial_to_the_digit(graft, capsys):
    assert graft("plan", "--parameters", "1.3B", "--method", "full") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    sizes = {line[0]: line[1:3] for line in lines[1:5]}
    assert sizes == {
        "weights": ["5.2", "GB"],
        "gradients": ["5.2", "GB"],
        "optimizer": ["10.4", "GB"],
        "together": ["20.8", "GB"],
    }
    assert lines[5][:2] == ["Left", "out:"]
    assert {"activations,", "logits"} <= set(lines[5])
    assert graft("plan", "--parameters", "1.3B", "--method", "full", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sum_bytes"] == 16 * 1_300_000_000


@pytest.mark.parametrize("words", [["--memory", "24GiB"], ["--plot", "x.png"], ["--fit"]])
def test_what_a_number_of_parameters_does_not_tell_is_refused(graft, words, capsys):
    assert graft("plan", "--parameters", "1.3B", *words) == 2
    assert words[0] in capsys.readouterr().err


def test_a_place_without_fit_is_refused(graft, run_file, tmp_path, capsys):
    assert graft("plan", run_file, "--output", tmp_path / "other.yaml") == 2
    assert "--fit" in capsys.readouterr().err


def test_json_has_whole_bytes_and_a_range_of_seconds(graft, config_alone, capsys):
    words = ["--method", "lora", "--length", "16", "--batch-size", "2", "--precision", "bf16"]
    assert graft("plan", config_alone, *words, *ON, "r=3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    sizes = [found[f"{kind}_bytes"] for kind in KINDS]
    assert all(type(size) is int for size in [*sizes, found["peak_bytes"]])
    assert found["peak_bytes"] == sum(sizes)
    assert found["low"] < found["step_seconds"] < found["high"]
    assert found["time"] == "stated rate"
    assert (found["method"], found["precision"], found["rows_per_pass"]) == ("lora", "bf16", 2)


def test_a_terminal_of_80_columns_is_enough(graft, config_alone, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    words = ["--method", "lora,full", "--length", "16", "--batch-size", "2", "--precision", "fp32"]
    assert graft("plan", config_alone, *words, *ON) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "…" not in out


def test_a_run_file_its_plot_and_the_run_file_that_fits(graft, run_file, capsys):
    words = [run_file, "--memory", "100GiB", "--precision", "fp32", "--device", "24GiB"]
    plot = run_file.with_name("step.png")
    assert graft("plan", *words, "--plot", plot, "--fit") == 0
    captured = capsys.readouterr()
    assert plot.read_bytes().startswith(b"\x89PNG")
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert any(line.startswith("peak ") for line in lines)
    assert any(line.endswith("it fits.") for line in lines)
    fitting = run_file.with_name("run.fit.yaml")
    assert load_run_config(fitting) == load_run_config(run_file)
    assert "the run fits as it is" in captured.err
    assert graft("plan", *words, "--fit") == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a run file or a model"),
        (["MODEL", "--batch-size", "0"], "no batch with 0 rows"),
        (["MODEL", "--length", "65"], "positions"),
        (["MODEL", "--memory", "lots"], "24GiB"),
        (["MODEL", "--device", "A100-40GC"], "A100-40GB"),
        (["MODEL", "--method", "lorra"], "Did you mean lora"),
        (["MODEL", "rr=3"], "no setting 'rr'"),
        (["MODEL", "--precision", "fp8"], "bf16"),
        (["MODEL", "--method", "full", "--precision", "4-bit"], "no gradients"),
        (["MODEL", "--fit"], "graft init"),
        (["MODEL", "--parameters", "1B"], "not both"),
        (["--parameters", "lots"], "1.3B"),
        (["--parameters", "1B", "--method", "lora"], "name one"),
        (["nothing.yaml"], "no run file"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(graft, config_alone, capsys, words, message):
    given = [config_alone if word == "MODEL" else word for word in words]
    assert graft("plan", *given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("graft: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "did you mean llama?"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "code of its own"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "hidden_size and num_hidden_layers",
        ),
        ({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}, "--task-type"),
    ],
)
def test_models_that_cannot_be_planned(graft, tmp_path, capsys, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert graft("plan", tmp_path, *ON) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
