from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from graft import LoraConfig
from graft.inspection import inspect


@pytest.fixture
def config_alone(base_folder, tmp_path) -> Path:
    shutil.copy(base_folder / "config.json", tmp_path)
    return tmp_path


def test_the_tree_and_what_a_pattern_hits(graft, config_alone, capsys):
    words = ["--method", "lora", "--target-modules", "q_proj,v_proj", "r=4"]
    assert graft("inspect", config_alone, *words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    found = inspect(config_alone, config).adapter
    assert found is not None
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("LlamaForCausalLM: ")
    added = 4 * (16 + 16)
    assert f"q_proj Linear 16 x 16 256 +{added}" in lines
    assert "k_proj Linear 8 x 16 128" in lines
    assert any(line.startswith("layers.0-1 x2 LlamaDecoderLayer ") for line in lines)
    at = lines.index("q_proj hits 2 layers:")
    assert lines[at + 1] == "model.layers.{0-1}.self_attn.q_proj"
    missed = lines[lines.index("could be adapted, but is not hit:") :]
    assert "model.layers.{0-1}.mlp.up_proj" in missed
    assert f"lora trains {found.trainable_parameters:,} parameters" in lines[-1]


def test_the_model_alone(graft, config_alone, capsys):
    assert graft("inspect", config_alone) == 0
    out = capsys.readouterr().out
    assert "lm_head" in out
    assert "to train" not in out
    assert "hits" not in out


def test_nothing_is_cut_short_in_a_pipe(config_alone):
    command = [sys.executable, "-m", "graft.cli", "inspect", str(config_alone), "--method", "ia3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "LlamaForCausalLM" in done.stdout
    assert "post_attention_layernorm" in done.stdout
    assert "…" not in done.stdout


def test_json_holds_all_of_it(graft, config_alone, capsys):
    words = ["--target-modules", "all-linear", "--json"]  # of LoRA, where no method is named
    assert graft("inspect", config_alone, *words) == 0
    wanted = asdict(inspect(config_alone, LoraConfig(target_modules="all-linear")))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(wanted))


def test_a_regular_expression(graft, config_alone, capsys):
    pattern = r"model\.layers\.1\..*_proj"
    assert graft("inspect", config_alone, "--target-modules", pattern) == 0
    assert f"{pattern} hits 7 layers:" in capsys.readouterr().out


def test_virtual_tokens_and_a_new_head(graft, config_alone, capsys):
    words = ["--method", "prompt_tuning", "--num-virtual-tokens", "5", "--task-type", "SEQ_CLS"]
    assert graft("inspect", config_alone, *words) == 0
    out = capsys.readouterr().out
    assert "LlamaForSequenceClassification" in out
    assert "5 virtual tokens in each row" in out
    assert "trained whole: score" in out
    assert f"trains {5 * 16 + 2 * 16:,} parameters" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./nowhere"], "no folder ./nowhere"),
        (["BASE", "--method", "lroa"], "Did you mean lora"),
        (["BASE", "--method", "prompt_tuning"], "num_virtual_tokens"),
        (["BASE", "--target-modules", "q_prj"], "q_proj"),
        (["BASE", "--target-modules", "q_("], "not a regular expression"),
        (["BASE", "--method", "lora", "rr=3"], "Did you mean r"),
        (["BASE", "--method", "lora", "stray"], "stray"),
        (["BASE", "--task-type", "CAUSAL"], "Did you mean CAUSAL_LM"),
        (["BASE", "--task-type", "SEQ_2_SEQ_LM"], "SEQ_2_SEQ_LM"),
    ],
)
def test_what_the_user_can_mend(graft, base_folder, capsys, words, said):
    assert graft("inspect", *(base_folder if word == "BASE" else word for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
