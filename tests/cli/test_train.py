from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from graft.cli import main

PROMPT = "{method: prompt_tuning, num_virtual_tokens: 0}"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    """A run file with a tiny base model and data beside it."""
    folder = tmp_path_factory.mktemp("cli")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<pad>"
    )
    fast.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    rows = [{"prompt": f"{a} b c", "completion": " d e"} for a in "abcdefgh"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "base_model": str(folder / "base"),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "target_modules": "all-linear"}},
        "data": {"train": str(folder / "rows.jsonl"), "eval_fraction": 0.25},
        "train": {"max_steps": 4, "eval_steps": 4, "save_steps": 2, "logging_steps": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def graft(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graft.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_trains_and_refuses_the_used_folder(run_file, tmp_path, capsys):
    """In a process of its own: what a user sees, and nothing of what libraries say."""
    out = tmp_path / "out"
    done = graft("train", run_file, f"output_dir={out}", "r=3", "--learning_rate", "1e-2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["learning_rate"] == 1e-2
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    lines = done.stdout.splitlines()
    starts = [
        "tokenising",
        "plan:",
        "8 rows of",
        "precision:",
        "data:",
        "training",
        "batches: rows are packed",
        "evaluation, before",
        "step 2/4",
        "memory: planned",
        "step 4/4",
    ]
    starts += ["evaluation, step 4", "4 steps", "loss:", "perplexity:", "adapter (last):"]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)

    before = contents(out)
    for words, said in (([], "--resume"), (["--resume", "r=4"], "adapters was")):
        assert run("train", run_file, f"output_dir={out}", *words) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
        assert contents(out) == before


def test_a_dry_run(run_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("train", run_file, f"output_dir={out}", "--dry-run", "seed=7") == 0
    settings, _, told = capsys.readouterr().out.partition("# the run")
    assert yaml.safe_load(settings)["train"]["seed"] == 7
    starts = ["precision:", "data:", "base model:", "adapter own:", "rows:", "steps: 4;", "tokens:"]
    starts += [
        "batches:",
        "learning rate:",
        "first batch:",
        "when:",
        f"writes to: {out}",
        "plan:",
        "dry run:",
    ]
    assert len(told.splitlines()[1:]) == len(starts)
    for line, start in zip(told.splitlines()[1:], starts, strict=True):
        assert line.startswith(start)
    assert not out.exists()
    assert run("train", run_file, f"output_dir={out}", "--dry-run", "base_model=./nowhere") == 2
    assert "./nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["RUN", "learning_rte=1"], "learning_rate"),
        (["RUN", "--cutoff-len", "3"], "data.max_length"),
        (["RUN", "stray"], "stray"),
        (["RUN", "output_dir=OUT", "base_model=./nowhere"], "./nowhere"),
        (["RUN", "output_dir=OUT", "base_model=BARE"], "has no weights"),
        (["RUN", "output_dir=OUT", "method=lroa"], "Did you mean lora?"),
        (["RUN", "output_dir=OUT", "adapters.own.rnk=3"], "no setting `adapters.own.rnk`"),
        (["RUN", "output_dir=OUT", "target_modules=[q_prj]"], "Did you mean q_proj"),
        (["RUN", "output_dir=OUT", "target_modules=.*_prj"], "it matches none"),
        (["RUN", "output_dir=OUT", f"adapters={{p: {PROMPT}}}"], "at least 1, not 0"),
        (["RUN", "output_dir=OUT", "--resume"], "no checkpoint"),
    ],
)
def test_what_the_user_can_mend(run_file, tmp_path, capsys, words, said):
    bare = tmp_path / "bare"
    shutil.copytree(run_file.parent / "base", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    places = {"RUN": str(run_file), "OUT": str(tmp_path / "out"), "BARE": str(bare)}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert run("train", *words) == 2
    out, err = capsys.readouterr()
    assert all(re.search(r"\d rows? of", line) for line in out.splitlines())  # progress
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "data.jsonl does not exist. Did you mean dota.jsonl?"),
        ("", "data.jsonl is empty"),
        ('{"prompt": "a", "answer": "b"}\n', "prompt + completion (prompt_completion)"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "row 2 of"),
        ('{"prompt": "a", "completion": " "}\n', "completion is empty"),
        ('{"instruction": "a", "output": ""}\n', "output is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "no assistant turn"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt"', "line 2: not JSON"),
    ],
)
def test_data_the_user_can_mend(run_file, tmp_path, capsys, content, said):
    (tmp_path / "dota.jsonl").touch()
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    words = [f"output_dir={tmp_path / 'out'}", f"data.train={tmp_path / 'data.jsonl'}"]
    assert run("train", run_file, *words, "eval_fraction=0") == 2
    out, err = capsys.readouterr()
    assert all(re.search(r"\d rows? of", line) for line in out.splitlines())  # progress
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_not_there(run_file, tmp_path, capsys):
    columns = "columns={prompt: promt, completion: completion}"
    assert run("train", run_file, f"output_dir={tmp_path / 'out'}", columns) == 2
    assert (
        "has no column 'promt' (given for prompt). Did you mean prompt?" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_debug_may_stand_anywhere(run_file):
    shown = graft("train", run_file, "learning_rte=1", "--debug")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "ConfigError" in shown.stderr


def test_a_failed_run(run_file, tmp_path, capsys):
    words = [f"output_dir={tmp_path / 'out'}", "learning_rate=1e30"]
    assert run("train", run_file, *words) == 1
    err = capsys.readouterr().err
    assert "learning rate" in err
    assert len(err.splitlines()) == 1
