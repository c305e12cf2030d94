"""Comparisons from a run file to results, on tiny models: each is also done by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import graft
from graft.adapt import PeftModel
from graft.atomic import write_text
from graft.comparison.grid import load_study, parse_study
from graft.comparison.records import read_comparison
from graft.comparison.study import compare
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.errors import ConfigError, DataError, TargetError
from graft.hub import load_model, load_tokenizer
from graft.training.evaluate import evaluate
from graft.training.report import Callback
from graft.training.run import train
from tiny import SENTENCES

LORA = {"method": "lora", "r": 2, "target_modules": "all-linear"}
PROMPT = {"method": "prompt_tuning", "num_virtual_tokens": 3}


@pytest.fixture
def files(tmp_path) -> Path:
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    write_text(tmp_path / "rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    write_text(tmp_path / "text.txt", " ".join(SENTENCES))
    return tmp_path


@pytest.fixture
def raw(base_folder, files) -> dict:
    """A run file that compares two adapters."""
    return {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"low": dict(LORA), "soft": dict(PROMPT)},
        "data": {"train": str(files / "rows.jsonl"), "eval_fraction": 0.2, "max_length": 32},
        "train": {
            "output_dir": str(files / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "seed": 5,
        },
        "compare": {"speed_tokens": 2, "speed_rows": 2, "answers": 4, "max_new_tokens": 4},
    }


class Notes(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def row_of(found, point: str, seed: int):
    (row,) = [row for row in found.rows if (row.point, row.seed) == (point, seed)]
    return row


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def study(raw, files):
    raw["compare"] |= {"seeds": 2, "full": True, "text": str(files / "text.txt")}
    raw["compare"] |= {"full_learning_rate": 1e-2}
    return parse_study(raw)


def test_a_whole_comparison(study, raw, files):
    found = compare(study)
    assert [row.point for row in found.rows] == ["low"] * 2 + ["soft"] * 2 + ["full"] * 2
    assert found.planned == 6
    assert not any(row.error for row in found.rows)

    # Its results are on disk, and a point equals the run that trains it alone.
    out = files / "out"
    assert read_comparison(out) == found
    assert load_study(out / "run.yaml").points == study.points
    config = study.points[0].with_seed(6)
    place = {"output_dir": str(files / "alone")}
    alone = train(config.model_copy(update={"train": config.train.model_copy(update=place)}))
    assert weights(files / "alone") == weights(out / "low" / "seed-6")
    low = row_of(found, "low", 6).measured
    assert low.quality["loss"] == alone.summary["eval_last"]["loss"]  # rows packed alike
    assert low.trainable_parameters == alone.summary["trainable_parameters"]
    assert low.adapter_bytes == len(weights(files / "alone"))
    assert (low.steps, low.rows, low.tokens) == (3, 12, alone.summary["tokens"])
    assert [record["step"] for record in low.log if "loss" in record] == [1, 2, 3]

    # The base model by itself, and what was forgotten, computed here.
    tokenizer = load_tokenizer(raw["base_model"])
    rows = prepare_data(study.run.data, tokenizer, TaskType.CAUSAL_LM, 5).eval
    data = DataConfig(train=str(files / "text.txt"), max_length=32)
    text = prepare_data(data, tokenizer, TaskType.CAUSAL_LM, 5).train

    def losses(model) -> list[float]:
        return [
            evaluate(model, own, Collator(tokenizer, TaskType.CAUSAL_LM), TaskType.CAUSAL_LM, 8,
                     torch.device("cpu"))["loss"]
            for own in (rows, text)
        ]  # fmt: skip

    before = losses(load_model(raw["base_model"], TaskType.CAUSAL_LM))
    assert (found.base.quality["loss"], found.base.text_loss) == pytest.approx(before, abs=1e-5)
    after = losses(alone.model)
    assert low.forgetting == pytest.approx(after[1] - before[1], abs=1e-5)

    # Every parameter learned in `full`, none of it is written, and nothing of it stayed.
    full = row_of(found, "full", 5)
    assert full.measured.trainable_parameters == found.base.parameters
    assert full.peft_config is None
    assert not list((out / "full").rglob("*.safetensors"))
    assert full.measured.quality["loss"] != row_of(found, "full", 6).measured.quality["loss"]
    assert full.measured.quality["loss"] < found.base.quality["loss"]


def test_speed_and_samples(raw):
    found = compare(parse_study(raw))
    low, soft = (row.measured for row in found.rows)
    assert low.inference.unit == "tokens/s"
    assert low.inference.merged > 0
    assert soft.inference.merged is None
    assert "virtual tokens" in soft.inference.note
    assert [len(m.samples) for m in (low, soft)] == [3, 3]
    for one, other in zip(low.samples, soft.samples, strict=True):
        assert (one.prompt, one.wanted, one.base) == (other.prompt, other.wanted, other.base)
        whole = f"{one.prompt}{one.wanted}"
        assert whole in SENTENCES
    assert set(low.quality) == {"loss", "perplexity", "exact_match"}


def test_the_base_model_is_as_it_was_for_every_row(raw, files):
    """Trained in any order, a point comes out the same."""
    raw["compare"]["full"] = True
    first = compare(parse_study(raw))
    raw["adapters"] = dict(reversed(raw["adapters"].items()))
    raw["train"]["output_dir"] = str(files / "again")
    again = compare(parse_study(raw))
    for row in first.rows:
        other = row_of(again, row.point, row.seed)
        assert other.measured.quality == pytest.approx(row.measured.quality)
    for point in ("low", "soft"):
        places = [files / out / point / "seed-5" for out in ("out", "again")]
        assert weights(places[0]) == weights(places[1])


def test_what_is_done_is_not_done_again(raw, files):
    raw["compare"]["seeds"] = 2
    first = compare(parse_study(raw))
    out = files / "out"
    times = {p: p.stat().st_mtime_ns for p in out.rglob("adapter_model.safetensors")}
    shutil.rmtree(out / "soft" / "seed-6")
    notes = Notes()
    second = compare(parse_study(raw), resume=True, callbacks=[notes])
    assert sum("done already" in said for said in notes.said) == 3
    for path, time in times.items():
        assert (path.stat().st_mtime_ns == time) == (
            "seed-6" not in str(path) or "low" in str(path)
        )
    for row in first.rows:
        quality = row_of(second, row.point, row.seed).measured.quality
        assert quality == row.measured.quality
    raw["grid"] = {"adapters.low.r": [2]}  # more may be added
    raw["compare"]["seeds"] = 3
    third = compare(parse_study(raw), resume=True)
    assert len(third.rows) == 6


def test_other_settings_are_not_gone_on_with(raw, files):
    compare(parse_study(raw))
    with pytest.raises(ConfigError, match="not empty"):
        compare(parse_study(raw))
    raw["train"]["max_steps"] = 4
    with pytest.raises(ConfigError, match=r"train.max_steps was 3 and is 4"):
        compare(parse_study(raw), resume=True)
    raw["train"]["overwrite_output_dir"] = True
    (files / "out" / "mine.txt").write_text("mine")
    assert row_of(compare(parse_study(raw)), "low", 5).measured.steps == 4
    assert (files / "out" / "mine.txt").is_file()


def test_a_point_that_fails_leaves_the_others_untouched(raw, files):
    raw["adapters"] = {"wild": {**LORA, "learning_rate": 1e30}, **raw["adapters"]}
    raw["compare"]["seeds"] = 2
    found = compare(parse_study(raw))
    wild, low, _ = found.groups
    assert (wild.failed, wild.seeds, wild.rank) == (2, (), None)
    assert "learning rate" in row_of(found, "wild", 5).error
    assert low.rank is not None
    del raw["adapters"]["wild"]
    raw["train"]["output_dir"] = str(files / "tame")
    tame = compare(parse_study(raw))
    same = row_of(found, "low", 5).measured.quality
    assert row_of(tame, "low", 5).measured.quality == pytest.approx(same)
    assert read_comparison(files / "out") == found


def test_a_classifier_is_read_not_generated(bert_folder, files):
    rows = [{"text": s, "label": "moon" if "moon" in s else "none"} for s in SENTENCES]
    write_text(files / "classes.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    raw = {
        "base_model": str(bert_folder),
        "task_type": "SEQ_CLS",
        "adapters": {"low": {"method": "lora", "r": 2}},
        "data": {"train": str(files / "classes.jsonl"), "eval_fraction": 0.3},
        "train": {"output_dir": str(files / "out"), "max_steps": 2},
        "compare": {"seeds": 2, "full": True},
    }
    found = compare(parse_study(raw))
    assert (found.metric, found.higher_is_better) == ("accuracy", True)
    low = row_of(found, "low", 42).measured
    assert low.inference.unit == "rows/s"
    assert low.inference.merged is not None
    assert {s.answer for s in low.samples} | {s.wanted for s in low.samples} <= {"moon", "none"}
    assert all(s.prompt in {t.lower() for t in SENTENCES} | set(SENTENCES) for s in low.samples)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"adapters": {"a": LORA, "b": {**LORA, "data": {"train": "no.jsonl"}}}}, DataError, "b: "),
        ({"adapters": {"a": LORA, "b": {**LORA, "target_modules": ["q_prj"]}}}, TargetError, "b: "),
        ({"adapters": {"a": {**PROMPT, "num_virtual_tokens": 63}}}, ConfigError, "a: "),
        ({"compare": {"text": "nowhere.txt"}}, DataError, "compare.text: "),
        ({"compare": {"metric": "f1"}}, ConfigError, "not measured here. Valid: loss, perplexity"),
        ({"base_model": "./nowhere"}, ConfigError, "./nowhere"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_trains(raw, files, change, error, said):
    with pytest.raises(error) as caught:
        compare(parse_study({**raw, **change}))
    assert said in str(caught.value)
    assert not (files / "out").exists()


def test_a_stop_by_hand_says_how_to_go_on(raw, files):
    class Stop(Callback):
        def on_step(self, step: int) -> None:
            if (files / "out" / "low" / "seed-5" / "result.json").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"run 2 of 2; --resume"):
        compare(parse_study(raw), callbacks=[Stop()])
    half = read_comparison(files / "out")
    assert (len(half.rows), half.planned) == (1, 2)
    assert len(compare(parse_study(raw), resume=True).rows) == 2


def test_it_is_in_the_python_api(raw, files):
    assert graft.compare is compare
    file = files / "run.yaml"
    file.write_text(json.dumps(raw))
    found = graft.compare(file, ["adapters={low: {method: ia3}}", "max_steps=1"])
    assert [row.measured.steps for row in found.rows] == [1]


def test_an_adapter_trained_here_loads_like_any_other(raw, files, base_folder):
    compare(parse_study(raw))
    base = load_model(str(base_folder), TaskType.CAUSAL_LM)
    model = PeftModel.from_pretrained(base, files / "out" / "low" / "seed-5")
    assert model.peft_type == "LORA"
