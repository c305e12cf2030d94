from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.prepare import prepare_data
from graft.errors import CheckpointError, ConfigError, DataError, GraftError, TargetError
from graft.hub import saved_label_names
from graft.training.evaluate import evaluate
from graft.training.forecast import Forecast, Watch
from graft.training.loop import TrainingError
from graft.training.report import Callback
from graft.training.run import train
from graft.training.runfile import load_run_config, parse_run_config
from tiny import SENTENCES, make_tokenizer, tiny_bert


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class StopAt(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step(self, step: int) -> None:
        if step == self.step:
            raise self.error


class Notes(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def finished(raw_run):
    notes = Notes()
    config = parse_run_config(raw_run)
    return config, train(config, callbacks=[notes]), notes.texts


def test_a_run_leaves_a_folder_to_go_on_with(finished, base_folder):
    config, result, notes = finished
    assert files_in(result.output_dir) >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "best",
        "checkpoint-2",
        "checkpoint-4",
        "loss.png",
        "run.yaml",
        "summary.json",
        "tokenizer.json",
        "train_log.jsonl",
    }
    assert not [name for name in files_in(result.output_dir) if name.startswith(".")]
    for name in ("best", "checkpoint-4"):
        assert "tokenizer.json" in files_in(result.output_dir / name)
    assert any(note.startswith("precision: ") for note in notes)
    assert any("rows to train on" in note for note in notes)

    # What was evaluated is what lies on disk, and on the data that the run file names.
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir)
    data = prepare_data(config.data, tokenizer, TaskType.CAUSAL_LM, config.train.seed)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    collator = Collator(tokenizer, TaskType.CAUSAL_LM)
    for model, name in (
        (base, "eval_before"),
        (PeftModel.from_pretrained(base, result.output_dir), "eval_last"),
    ):
        metrics = evaluate(model, data.eval, collator, TaskType.CAUSAL_LM, 8, torch.device("cpu"))
        assert result.summary[name] == pytest.approx(metrics, rel=1e-5)


def test_the_summary(finished, data_file):
    config, result, _ = finished
    summary = json.loads((result.output_dir / "summary.json").read_text())
    assert summary == result.summary
    trainable, every = result.model.get_nb_trainable_parameters()
    rows = round(0.8 * len(SENTENCES))
    learned = [line for line in _log(result.output_dir) if "loss" in line]
    expected = {
        "base_model": config.base_model,
        "task_type": "CAUSAL_LM",
        "adapter": "own",
        "method": "lora",
        "trainable_parameters": trainable,
        "all_parameters": every,
        "train_rows": rows,
        "eval_rows": len(SENTENCES) - rows,
        "data_sha256": {str(data_file): hashlib.sha256(data_file.read_bytes()).hexdigest()},
        "steps": 4,
        "rows_seen": 16,
        "tokens": learned[-1]["tokens"],
        "train_loss": learned[-1]["loss"],
        "saved": "last",
        "stopped_early": False,
        "seed": 42,
        "learning_rate": 1e-2,
        "dtype": "float32",
    }
    assert summary.items() >= expected.items()
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["seconds"])
    assert set(summary["versions"]) >= {"python", "graft-peft", "torch", "transformers"}
    assert summary["eval_best"]["loss"] <= summary["eval_last"]["loss"]


def _log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_the_resolved_run_file_repeats_the_run(finished, tmp_path):
    _, result, _ = finished
    again = load_run_config(
        result.output_dir / "run.yaml", [f"train.output_dir={tmp_path / 'again'}"]
    )
    assert again.train.learning_rate == 1e-2
    repeated = train(again)
    for name in ("train_loss", "eval_last", "tokens"):
        assert repeated.summary[name] == result.summary[name]


@pytest.fixture
def classifier_run(tmp_path, raw_run):
    folder = tmp_path / "bert"
    tiny_bert().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    rows = [{"text": s, "label": "moon" if "moon" in s else "other"} for s in SENTENCES]
    (tmp_path / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw_run |= {"base_model": str(folder), "task_type": "SEQ_CLS"}
    raw_run["data"] = {"train": str(tmp_path / "classes.jsonl"), "eval_fraction": 0.2}
    return raw_run


def test_a_classifier(classifier_run):
    classifier_run["train"] |= {
        "max_steps": 30,
        "save_total_limit": None,
        "load_best_model_at_end": True,
    }
    summary = train(parse_run_config(classifier_run)).summary
    assert summary["label_names"] == ["moon", "other"]
    assert set(summary["eval_best"]) == {"loss", "accuracy"}
    assert summary["eval_best"]["loss"] < summary["eval_before"]["loss"]
    assert summary["saved"] == "best"
    out = Path(classifier_run["train"]["output_dir"])
    for folder in (out, out / "best", out / "checkpoint-2"):
        assert saved_label_names(folder) == ["moon", "other"]


def test_rows_keep_to_the_positions_of_the_base_model(classifier_run, tmp_path):
    """Virtual tokens take positions too; beyond the last one is no embedding to look up."""
    rows = [{"text": f"{s} " * 40, "label": "moon" if "moon" in s else "other"} for s in SENTENCES]
    (tmp_path / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    positions, virtual = tiny_bert().config.max_position_embeddings, 5
    classifier_run["adapters"] = {"a": {"method": "prompt_tuning", "num_virtual_tokens": virtual}}
    notes = Notes()
    result = train(parse_run_config(classifier_run), callbacks=[notes])
    assert result.summary["rows_truncated"] == len(SENTENCES)
    room = f"{positions - virtual}"
    assert any(note.startswith(f"data.max_length: {room} ") for note in notes.texts)
    assert any(note.endswith(f"were cut to {room} tokens") for note in notes.texts)
    again = load_run_config(result.output_dir / "run.yaml")
    assert again.data.max_length == positions - virtual

    classifier_run["adapters"]["a"]["num_virtual_tokens"] = positions - 1
    classifier_run["train"]["overwrite_output_dir"] = True
    with pytest.raises(ConfigError, match=f"{positions} positions. Lower num_virtual_tokens"):
        train(parse_run_config(classifier_run))


def test_the_seed_decides_everything(classifier_run):
    """The new head, the adapter's start, the order of the rows, dropout."""
    classifier_run["train"]["overwrite_output_dir"] = True
    runs = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        classifier_run["train"]["seed"] = seed
        runs.append(train(parse_run_config(classifier_run)).summary)
    for name in ("eval_before", "eval_last", "train_loss"):
        assert runs[0][name] == runs[1][name] != runs[2][name]


def test_the_chat_template_lies_beside_every_adapter(tmp_path, raw_run):
    rows = [{"instruction": s[:8], "output": s[8:]} for s in SENTENCES]
    (tmp_path / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw_run["data"] |= {"train": str(tmp_path / "alpaca.jsonl"), "max_length": 64}
    result = train(parse_run_config(raw_run))
    template = result.tokenizer.chat_template
    assert template
    for folder in (
        result.output_dir,
        result.output_dir / "best",
        result.output_dir / "checkpoint-2",
    ):
        assert AutoTokenizer.from_pretrained(folder).chat_template == template

    # Another run in the same folder, of texts as they stand: there is no template any more.
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES))
    raw_run["data"]["train"] = str(tmp_path / "lines.txt")
    raw_run["train"]["overwrite_output_dir"] = True
    train(parse_run_config(raw_run))
    assert AutoTokenizer.from_pretrained(result.output_dir).chat_template is None


def test_text_is_learned_without_the_base_models_template(tmp_path, raw_run, base_folder):
    chatty = tmp_path / "chatty"
    shutil.copytree(base_folder, chatty)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(chatty)
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES))
    raw_run["base_model"] = str(chatty)
    raw_run["data"]["train"] = str(tmp_path / "lines.txt")
    result = train(parse_run_config(raw_run))
    assert AutoTokenizer.from_pretrained(chatty).chat_template is not None
    assert AutoTokenizer.from_pretrained(result.output_dir).chat_template is None


# --- the output folder ------------------------------------------------------------------------

BAD = {
    "no such base model": ({"base_model": "./nowhere"}, ConfigError),
    "no such data": ({"data": {"train": "nowhere.jsonl"}}, DataError),
    "no such target": (
        {"adapters": {"a": {"method": "lora", "target_modules": ["x"]}}},
        TargetError,
    ),
    "no rows to evaluate on": ({"train": {"early_stopping_patience": 1}}, ConfigError),
    "schedule": ({"train": {"lr_scheduler_type": "cosine_with_min_lr"}}, ConfigError),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("used", [False, True])
def test_bad_input_leaves_the_folder_alone(raw_run, tmp_path, case, used):
    changes, error = BAD[case]
    out = tmp_path / "out"
    raw_run["data"].pop("eval_fraction")
    for section, change in changes.items():
        if section == "train":
            change = {**raw_run["train"], **change}
        raw_run[section] = change
    if used:
        out.mkdir()
        (out / "summary.json").write_text("an old run")
        raw_run["train"]["overwrite_output_dir"] = True
    with pytest.raises(error):
        train(parse_run_config(raw_run))
    assert (files_in(out) == {"summary.json"}) if used else not out.exists()


def test_a_used_folder_is_refused(raw_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--resume.*overwrite_output_dir"):
        train(parse_run_config(raw_run))
    assert files_in(tmp_path / "out") == {"thesis.txt"}
    raw_run["train"]["output_dir"] = str(tmp_path / "out" / "thesis.txt")
    with pytest.raises(ConfigError, match="is a file"):
        train(parse_run_config(raw_run))


def test_overwriting_removes_the_former_run_and_nothing_else(raw_run, tmp_path):
    out = tmp_path / "out"
    train(parse_run_config(raw_run))
    (out / "thesis.txt").write_text("mine")
    (out / "checkpoint-99").mkdir()  # not a checkpoint: there is no adapter in it
    raw_run["train"] |= {"overwrite_output_dir": True, "max_steps": 1}
    raw_run["data"].pop("eval_fraction")
    train(parse_run_config(raw_run))
    assert (out / "thesis.txt").read_text() == "mine"
    assert {"checkpoint-1", "checkpoint-99", "adapter_config.json"} <= files_in(out)
    assert not {"checkpoint-2", "checkpoint-4", "best"} & files_in(out)
    assert [record["step"] for record in _log(out)] == [1]


# --- stopping and going on --------------------------------------------------------------------


def test_stopped_by_hand_and_resumed(raw_run, tmp_path):
    whole = train(parse_run_config(raw_run))
    raw_run["train"]["output_dir"] = str(tmp_path / "parts")
    config = parse_run_config(raw_run)
    with pytest.raises(KeyboardInterrupt, match=r"--resume goes on from .*checkpoint-2"):
        train(config, callbacks=[StopAt(3, KeyboardInterrupt())])
    assert "summary.json" not in files_in(tmp_path / "parts")
    resumed = train(config, resume=True)
    for name in ("tokens", "train_loss", "eval_before", "eval_last", "eval_best", "best_step"):
        assert resumed.summary[name] == whole.summary[name], name
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        written = [(run.output_dir / name).read_bytes() for run in (whole, resumed)]
        assert written[0] == written[1]
    losses = [[r["loss"] for r in run if "loss" in r] for run in map(_log, (
        whole.output_dir, resumed.output_dir))]  # fmt: skip
    assert losses[0] == losses[1]


def test_stopped_before_there_is_a_checkpoint(raw_run):
    config = parse_run_config(raw_run)
    with pytest.raises(KeyboardInterrupt, match="no checkpoint yet"):
        train(config, callbacks=[StopAt(1, KeyboardInterrupt())])
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("section", "change", "name"),
    [
        ("train", {"seed": 1}, "train.seed"),
        ("train", {"max_steps": 9}, "train.max_steps"),
        ("data", {"max_length": 31}, "data.max_length"),
        ("adapters", {"own": {"method": "lora", "r": 3}}, "adapters"),
    ],
)
def test_another_run_is_not_resumed(raw_run, section, change, name):
    train(parse_run_config(raw_run))
    raw_run[section] = {**raw_run[section], **change}
    with pytest.raises(CheckpointError, match=rf"another run: {name} was"):
        train(parse_run_config(raw_run), resume=True)


def test_changed_data_is_not_resumed(raw_run, data_file):
    train(parse_run_config(raw_run))
    data_file.write_text(data_file.read_text().replace("moon", "mood"))
    with pytest.raises(CheckpointError, match=r"sha256 of .*data\.jsonl"):
        train(parse_run_config(raw_run), resume=True)


def test_what_changes_no_weight_may_change_on_resume(raw_run):
    train(parse_run_config(raw_run))
    raw_run["train"] |= {"logging_steps": 1, "save_total_limit": 1}
    train(parse_run_config(raw_run), resume=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_full_device_is_explained(raw_run, error):
    with pytest.raises(TrainingError, match="gradient_accumulation_steps") as caught:
        train(parse_run_config(raw_run), callbacks=[StopAt(1, error)])
    assert not isinstance(caught.value, GraftError)
    assert caught.value.__cause__ is error
    raw_run["train"]["overwrite_output_dir"] = True
    forecast = Forecast(1, 1.0, 0.5, 2.0, cheaper=("train.x=1 (less)", "train.y=2", "train.z=3"))
    with pytest.raises(TrainingError, match=r"Set train\.x=1 \(less\) or train\.y=2\."):
        train(parse_run_config(raw_run), callbacks=[StopAt(1, error)], forecast=forecast)


def test_a_run_is_compared_with_its_forecast(raw_run, monkeypatch):
    monkeypatch.setattr(Watch, "peak_bytes", 5 * 2**20)
    raw_run["train"] |= {"max_steps": 4, "logging_steps": 1}
    plain = train(parse_run_config(raw_run))
    raw_run["train"]["overwrite_output_dir"] = True
    notes = Notes()
    forecast = Forecast(peak_bytes=3 * 2**30, step_seconds=0.25, low=0.125, high=0.5)
    result = train(parse_run_config(raw_run), callbacks=[notes], forecast=forecast)
    (told,) = [text for text in notes.texts if text.startswith("memory: planned")]
    assert "planned 3.00 GiB, measured" in told
    assert "a step: planned 0.25 s (0.125 to 0.5), measured" in told
    assert ", measured 5.00 MiB;" in told
    summary = result.summary
    assert summary["planned_peak_bytes"] == 3 * 2**30
    assert summary["measured_peak_bytes"] == 5 * 2**20
    assert summary["planned_step_seconds"] == 0.25
    assert summary["measured_step_seconds"] >= summary["seconds"] / 4 > 0
    # The largest batch that goes first leaves no trace in what is learned.
    before = load_file(plain.output_dir / "adapter_model.safetensors")
    losses = [
        record["loss"] for record in next(iter(result.results.values())).records if "loss" in record
    ]
    assert losses == [r["loss"] for r in next(iter(plain.results.values())).records if "loss" in r]
    for name, value in load_file(result.output_dir / "adapter_model.safetensors").items():
        assert torch.equal(value, before[name])
