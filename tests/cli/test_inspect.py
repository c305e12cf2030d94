from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import T5Config

from graft import BitFitConfig, IA3Config, LoraConfig
from graft.inspection import inspect
from graft.methods import method_names
from graft.training.runfile import load_run_config
from tiny import tiny_llama


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
    assert "q_proj 2 model.layers 1 in each of 2" in lines
    at = lines.index("hit:")
    assert lines[at + 1] == "model.layers.{0-1}.self_attn.q_proj"
    missed = lines[lines.index("could be adapted, but is not hit:") :]
    assert "model.layers.{0-1}.mlp.up_proj" in missed
    assert f"lora trains {found.trainable_parameters:,} parameters" in lines[-1]


def test_the_model_alone_and_every_method(graft, config_alone, capsys):
    assert graft("inspect", config_alone) == 0
    out = capsys.readouterr().out
    assert "lm_head" in out
    assert out.splitlines()[0].endswith(", config only")
    assert "hits" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    found = inspect(config_alone)
    for each in found.suggestions:
        adapter = each.adapter
        assert adapter is not None
        (line,) = [line for line in lines if line.startswith(f"{each.method} ")]
        acts_on = ", ".join(p.pattern for p in adapter.patterns) or "20 virtual tokens"
        numbers = f"{adapter.trainable_parameters:,} {100 * adapter.share:.2f}%"
        assert line.startswith(f"{each.method} {acts_on} {numbers} ")
        assert line.endswith(f" {adapter.learning_rate:g}")


@pytest.mark.parametrize("method", method_names())
def test_the_command_of_a_suggestion_makes_a_run_file(
    graft, base_folder, tmp_path, monkeypatch, method
):
    model = tmp_path / "a model"  # a name that a shell would take apart
    shutil.copytree(base_folder, model)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    (each,) = [each for each in inspect(model).suggestions if each.method == method]
    assert each.command is not None
    words = shlex.split(each.command.replace("DATA", "rows.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert graft(*words[1:]) == 0
    config = load_run_config("run.yaml")
    assert config.base_model == str(model)
    assert [adapter.method for adapter in config.adapters.values()] == [method]


def test_several_layers_in_one_line_say_how_many(graft, tmp_path, capsys):
    """Also where each has one part only, whose line is the layer's."""
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=4, num_heads=2)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    assert graft("inspect", tmp_path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1-3.layer", "x3"] in [line[:2] for line in lines]


def test_dtypes_that_are_not_the_usual_one_are_marked(graft, base_folder, tmp_path, capsys):
    model = tiny_llama().to(torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    model.save_pretrained(tmp_path)
    assert graft("inspect", tmp_path) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert ", bfloat16 and float32, " in lines[0]
    assert [line for line in lines if "float32" in line][1:] == ["norm LlamaRMSNorm 16 float32 16"]


def test_weights_that_do_not_fit_are_told(graft, base_folder, tmp_path, capsys):
    shutil.copytree(base_folder, tmp_path / "broken")
    config = tmp_path / "broken" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    )
    assert graft("inspect", tmp_path / "broken") == 0
    out, err = capsys.readouterr()
    assert "in 1 file" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("! In the files, but not in the config's model: ")
    assert "model.layers.1.mlp.up_proj.weight" in out.splitlines()[1]
    assert err == ""


def test_layers_that_a_pattern_leaves_out(graft, config_alone, capsys):
    words = ["--target-modules", "q_proj,layers.1.mlp.up_proj"]
    assert graft("inspect", config_alone, *words) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "layers.1.mlp.up_proj 1 model.layers .1" in lines
    assert "! layers.1.mlp.up_proj hits 1 of 2 layers of model.layers, not 0." in lines


def test_a_regular_expression_tried_on_every_path(graft, config_alone, capsys):
    assert graft("inspect", config_alone, "--regex", "q_proj") == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[2].startswith("q_proj matches 0 of ")
    assert "Put `.*` in front: '.*q_proj' matches 2 paths." in lines[3]
    assert lines[lines.index("in part only") + 1] == "2 model.layers.{0-1}.self_attn.q_proj"
    assert "1 lm_head" in lines[lines.index("not matched") :]
    assert "matched" not in lines  # there are none


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
    wanted = asdict(inspect(str(config_alone), LoraConfig(target_modules="all-linear")))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(wanted))
    assert graft("inspect", config_alone, "--json") == 0
    suggestions = json.loads(capsys.readouterr().out)["suggestions"]
    assert [each["method"] for each in suggestions] == method_names()
    assert graft("inspect", config_alone, "--regex", ".*_proj", "--json") == 0
    matched = json.loads(capsys.readouterr().out)["regex"]["matched"]
    assert len(matched) == 2 * 7


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (
            ["--target-modules", "all-linear", "--exclude-modules", "q_proj,0.mlp.up_proj"],
            LoraConfig(target_modules="all-linear", exclude_modules=["q_proj", "0.mlp.up_proj"]),
        ),
        (
            ["--target-modules", "q_proj", "--exclude-modules", r".*\.0\..*"],
            LoraConfig(target_modules=["q_proj"], exclude_modules=r".*\.0\..*"),
        ),
        (["layers_to_transform=1"], LoraConfig(layers_to_transform=1)),
        (
            ["--layers-to-transform", "0,1", "--layers-pattern", "layers"],
            LoraConfig(layers_to_transform=[0, 1], layers_pattern=["layers"]),
        ),
        (["layers_to_transform=[0, 1]"], LoraConfig(layers_to_transform=[0, 1])),
        (["modules_to_save=lm_head"], LoraConfig(modules_to_save=["lm_head"])),
        (["--trainable-token-indices", "1,2"], LoraConfig(trainable_token_indices=[1, 2])),
        (
            ["rank_pattern={q_proj: 2}", "bias=all"],
            LoraConfig(rank_pattern={"q_proj": 2}, bias="all"),
        ),
        (
            [
                "--method",
                "ia3",
                "--target-modules",
                "k_proj,down_proj",
                "--feedforward-modules",
                "down_proj",
                "--exclude-modules",
                "0.mlp.down_proj",
            ],
            IA3Config(
                target_modules=["k_proj", "down_proj"],
                feedforward_modules=["down_proj"],
                exclude_modules=["0.mlp.down_proj"],
            ),
        ),
        (
            [
                r"--method",
                r"ia3",
                r"--target-modules",
                r".*\.(k|down)_proj",
                r"--feedforward-modules",
                r".*\.down_proj",
            ],
            IA3Config(target_modules=r".*\.(k|down)_proj", feedforward_modules=r".*\.down_proj"),
        ),
        (["--method", "ia3", "layers_to_transform=0"], IA3Config(layers_to_transform=0)),
        (
            ["--method", "bitfit", "--exclude-modules", "o_proj", "--layers-to-transform", "1"],
            BitFitConfig(exclude_modules=["o_proj"], layers_to_transform=1),
        ),
        (
            ["--method", "bitfit", "--target-modules", "v_proj"],
            BitFitConfig(target_modules=["v_proj"]),
        ),
    ],
)
def test_settings_that_choose_layers(graft, config_alone, capsys, words, config):
    """As text on the command line, what they are as values of Python."""
    assert graft("inspect", config_alone, *words, "--json") == 0
    wanted = asdict(inspect(str(config_alone), config))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(wanted))


def test_a_regular_expression(graft, config_alone, capsys):
    pattern = r"model\.layers\.1\..*_proj"
    assert graft("inspect", config_alone, "--target-modules", pattern) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"{pattern} 7 model.layers .7" in lines


@pytest.mark.parametrize("method", ["prompt_tuning", "p-tuning", "prefix_tuning"])
def test_virtual_tokens_have_a_usual_number(graft, config_alone, capsys, method):
    assert graft("inspect", config_alone, "--method", method) == 0
    assert "20 virtual tokens in each row" in capsys.readouterr().out


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
        (["BASE", "--method", "prompt_tuning", "--num-virtual-tokens", "0"], "num_virtual_tokens"),
        (["BASE", "--target-modules", "q_prj"], "q_proj"),
        (["BASE", "--target-modules", "q_("], "not a regular expression"),
        (["BASE", "--method", "lora", "rr=3"], "Did you mean r"),
        (["BASE", "--method", "lora", "stray"], "stray"),
        (["BASE", "rank_pattern={q"], "not valid YAML"),
        (["BASE", "--regex", "q_("], "not a regular expression"),
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
