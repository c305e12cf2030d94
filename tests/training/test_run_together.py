"""A run file with several adapters: folders, resume, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import graft
from graft.adapt import PeftModel
from graft.cli import main
from graft.config import TaskType
from graft.errors import CheckpointError, ConfigError, DataError, TargetError
from graft.hub import load_model
from graft.training.rehearsal import dry_run
from graft.training.run import train
from graft.training.runfile import load_run_config, parse_run_config
from tiny import SENTENCES, make_tokenizer, tiny_bert, tiny_llama

from .conftest import needed_fields
from .test_run import Notes, StopAt, files_in


@pytest.fixture
def other_file(tmp_path):
    path = tmp_path / "other.jsonl"
    rows = [{"text": f"{a} {b}"} for a, b in zip(SENTENCES[:6], SENTENCES[6:], strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def joint_run(raw_run, other_file):
    """Three adapters: two learn the same rows, one its own, in its own way."""
    lora = {"method": "lora", "r": 2, "lora_dropout": 0.1}
    prompt = {"method": "prompt_tuning", **needed_fields("prompt_tuning")}
    ia3 = {
        "method": "ia3",
        "data": {"train": str(other_file), "eval_fraction": 0.2},
        "train": {"per_device_train_batch_size": 2, "max_steps": 3, "seed": 9},
    }
    return raw_run | {"adapters": {"a": lora, "b": prompt, "c": ia3}}


def adapter_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def losses(folder) -> list[float | None]:
    log = (folder / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line).get("loss") for line in log]


def test_each_adapter_has_a_folder_as_if_it_were_alone(joint_run, tmp_path):
    notes = Notes()
    result = train(parse_run_config(joint_run), callbacks=[notes])
    out = result.output_dir
    assert files_in(out) >= {"a", "b", "c", "run.yaml", "summary.json", "loss.png"}
    shared, own = [text for text in notes.texts if text.startswith("data of ")]
    assert shared.startswith("data of a, b: ")
    assert own.startswith("data of c: ")
    summary = json.loads((out / "summary.json").read_text())
    assert summary == result.summary
    assert summary["adapters"].keys() == {"a", "b", "c"}
    assert summary["measured_peak_bytes"] > 0
    assert summary["planned_peak_bytes"] is None
    for name in "abc":
        folder = out / name
        assert files_in(folder) >= {
            "adapter_config.json", "adapter_model.safetensors", "run.yaml", "summary.json",
            "train_log.jsonl", "loss.png", "tokenizer.json", "best",
        }  # fmt: skip
        assert json.loads((folder / "summary.json").read_text()) == summary["adapters"][name]
        again = load_run_config(folder / "run.yaml", [f"train.output_dir={tmp_path / name}"])
        alone = train(again)
        for key, value in adapter_weights(alone.output_dir).items():
            torch.testing.assert_close(adapter_weights(folder)[key], value, rtol=0, atol=2e-5)
        for field in ("train_loss", "eval_last", "eval_best", "eval_before"):
            assert alone.summary[field] == pytest.approx(summary["adapters"][name][field], rel=1e-5)
        for field in ("steps", "tokens", "rows_seen", "data_sha256", "trainable_parameters"):
            assert alone.summary[field] == summary["adapters"][name][field]


def test_stopped_and_resumed_as_a_whole(joint_run, tmp_path):
    joint_run["train"]["save_steps"] = 1
    whole = train(parse_run_config(joint_run), callbacks=[])
    wanted = {name: adapter_weights(whole.output_dir / name) for name in "abc"}
    joint_run["train"]["output_dir"] = str(tmp_path / "again")
    config = parse_run_config(joint_run)
    with pytest.raises(KeyboardInterrupt, match=r"--resume goes on from .*checkpoint-2"):
        train(config, callbacks=[StopAt(3, KeyboardInterrupt())])
    result = train(config, resume=True)
    for name, weights in wanted.items():
        found = adapter_weights(result.output_dir / name)
        assert all(torch.equal(found[key], value) for key, value in weights.items())
        assert losses(result.output_dir / name) == losses(whole.output_dir / name)
    joint_run["adapters"]["a"]["train"] = {"seed": 5}
    with pytest.raises(CheckpointError, match=r"train\.seed was .* and is 5"):
        train(parse_run_config(joint_run), resume=True)


@pytest.mark.parametrize("change", ["one less", "one more", "another name", "one"])
def test_other_adapters_are_not_gone_on_with(joint_run, tmp_path, change):
    for own in joint_run["adapters"].values():
        own["train"] = {"max_steps": 1}
    train(parse_run_config(joint_run))
    adapters = joint_run["adapters"]
    if change != "one more":
        c = adapters.pop("c")
    if change != "one less":
        adapters["d"] = {"method": "ia3"}
    if change == "one":
        joint_run["adapters"] = {"c": c}
    with pytest.raises(CheckpointError, match=r"checkpoint-1 is of a run of a, b, c; this one is"):
        train(parse_run_config(joint_run), resume=True)


def test_a_new_run_takes_the_place_of_the_former_one(joint_run):
    config = parse_run_config(joint_run)
    out = train(config).output_dir
    (out / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        train(config)
    joint_run["train"] |= {"overwrite_output_dir": True, "max_steps": 1}
    joint_run["adapters"]["c"]["train"]["max_steps"] = 1
    train(parse_run_config(joint_run))
    assert (out / "a" / "notes.txt").read_text() == "mine"
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-1"]
    # An adapter that the new run lacks goes, files that are not a run's stay.
    (out / "b" / "notes.txt").write_text("mine")
    for name in ("b", "c"):
        del joint_run["adapters"][name]
    joint_run["adapters"]["d"] = {"method": "ia3"}
    train(parse_run_config(joint_run))
    assert files_in(out) == {"a", "b", "d", "run.yaml", "summary.json", "loss.png", "checkpoint-1"}
    assert files_in(out / "b") == {"notes.txt"}


def test_the_rehearsal_tells_of_each(joint_run, tmp_path):
    dry = dry_run(parse_run_config(joint_run))
    text = "\n".join(dry.lines())
    assert "adapter a: lora" in text
    assert "adapter b: prompt_tuning" in text
    assert "adapter c: ia3" in text
    assert "steps: 3; " in text
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_one_is_said_before_anything_trains(joint_run, tmp_path):
    joint_run["adapters"]["c"]["data"]["train"] = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"^adapter 'c': .*nowhere\.jsonl"):
        train(parse_run_config(joint_run))
    del joint_run["adapters"]["c"]
    joint_run["data"]["train"] = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"^(?!adapter).*nowhere\.jsonl"):  # it is the run's
        train(parse_run_config(joint_run))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"target_modules": ["q_prj"]}, TargetError, "q_prj"),
        ({"train": {"lr_scheduler_kwargs": {"nope": 1}}}, ConfigError, "lr_scheduler_kwargs"),
        ({"train": {"early_stopping_patience": 1}, "data": {"eval_fraction": 0.0}}, ConfigError,
         "needs rows to evaluate on"),
        ({"method": "prompt_tuning", "num_virtual_tokens": 63}, ConfigError, "leave no room"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_names_it(joint_run, tmp_path, changes, error, said):
    joint_run["adapters"]["b"] = {"method": "lora"} | changes
    with pytest.raises(error, match=rf"(?s)^adapter 'b': .*{said}"):
        train(parse_run_config(joint_run))
    assert not (tmp_path / "out").exists()


def test_labels_that_differ_need_runs_of_their_own(tmp_path):
    base = tmp_path / "bert"
    tiny_bert().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    for name, labels in (("two", "ab"), ("three", "abc")):
        rows = [{"text": s, "label": labels[i % len(labels)]} for i, s in enumerate(SENTENCES)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_run_config(
        {
            "base_model": str(base),
            "task_type": "SEQ_CLS",
            "adapters": {
                "x": {"method": "lora"},
                "y": {"method": "ia3", "data": {"train": str(tmp_path / "three.jsonl")}},
            },
            "data": {"train": str(tmp_path / "two.jsonl")},
            "train": {"output_dir": str(tmp_path / "out"), "max_steps": 2},
        }
    )
    with pytest.raises(ConfigError, match="'x' has the labels a, b, that of 'y' a, b, c"):
        train(config)


def test_the_command_fails_where_an_adapter_left(joint_run, tmp_path, capsys):
    joint_run["adapters"]["a"] |= {
        "target_modules": "all-linear",
        "train": {"learning_rate": 1e30, "max_grad_norm": 0.0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(joint_run))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path)])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "These adapters left the run: a." in said.err
    assert "  left the run: The loss is no number any more" in said.out
    assert "a leaves the run. The loss is no number any more" in said.out
    out = tmp_path / "out"
    assert not (out / "a" / "adapter_config.json").exists()
    assert (out / "b" / "adapter_config.json").exists()
    assert "no number" in json.loads((out / "a" / "summary.json").read_text())["failure"]


def test_a_resumed_run_counts_what_an_adapter_learned_before_it_left(joint_run, tmp_path):
    joint_run["adapters"]["a"] |= {
        "target_modules": "all-linear",
        "train": {"learning_rate": 1e30, "max_grad_norm": 0.0},
    }
    joint_run["train"] |= {"save_steps": 1, "logging_steps": 1}
    whole = train(parse_run_config(joint_run)).summary
    joint_run["train"]["output_dir"] = str(tmp_path / "again")
    config = parse_run_config(joint_run)
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[StopAt(4, KeyboardInterrupt())])
    again = train(config, resume=True).summary
    assert again["tokens"] == whole["tokens"]
    of_each = (summary["adapters"]["a"] for summary in (again, whole))
    same = ("steps", "tokens", "rows_seen", "failure", "eval_before")
    one, other = ({name: own[name] for name in same} for own in of_each)
    assert one == other


def test_a_base_model_that_is_loaded_is_given_back_bare(raw_run, base_folder):
    raw_run["train"]["bf16"] = False
    fresh = train(parse_run_config(raw_run))
    base = load_model(str(base_folder), TaskType.CAUSAL_LM, dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    raw_run["train"] |= {"overwrite_output_dir": True}
    result = train(parse_run_config(raw_run), base=base)
    assert result.model.unload() is base
    for name, value in adapter_weights(fresh.output_dir).items():
        assert torch.equal(value, adapter_weights(result.output_dir)[name])
    raw_run["train"] |= {"learning_rate": 1e30, "max_grad_norm": 0.0}
    with pytest.raises(RuntimeError, match="no number"):
        train(parse_run_config(raw_run), base=base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(m._forward_hooks for m in base.modules())


def test_from_python(lm_rows):
    runs = {
        kind: graft.Run(
            lm_rows,
            lm_rows[:3],
            graft.TrainConfig(max_steps=3, learning_rate=1e-2, logging_steps=1),
            config,
        )
        for kind, config in (
            ("lora", graft.LoraConfig(task_type="CAUSAL_LM")),
            ("prompt", graft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        )
    }
    fitted = graft.train(tiny_llama(), runs)
    assert isinstance(fitted.model, PeftModel)
    for name, result in fitted.results.items():
        assert result.progress.step == 3
        assert result.progress.eval_last["loss"] < result.progress.eval_before["loss"], name
        assert [record["step"] for record in result.records if "loss" in record] == [1, 2, 3]
    with pytest.raises(ConfigError, match="no config"):
        graft.train(tiny_llama(), {"a": graft.Run(lm_rows)})
    with pytest.raises(ConfigError, match="a run for each adapter"):
        graft.train(tiny_llama())
    config = graft.LoraConfig(task_type="SEQ_CLS")
    with pytest.raises(ConfigError, match="need one task_type"):
        graft.train(tiny_llama(), {"x": graft.Run(lm_rows, config=config), **runs})
