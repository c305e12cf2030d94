from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import T5Config, T5ForConditionalGeneration

from graft.config import PeftType, TaskType
from graft.data.config import DataConfig, SourceConfig
from graft.data.formats import find_format
from graft.data.sources import read_source, resolve_source
from graft.data.tasks import make_task
from graft.errors import ConfigError, DataError
from graft.hub import load_tokenizer
from graft.methods import METHODS
from graft.training.draft import draft
from graft.training.run import train
from graft.training.runfile import load_run_config
from tiny import SENTENCES, make_tokenizer, tiny_bert

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path, text: str, *overrides: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_run_config(path, overrides)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """An encoder as it is pretrained: without a head of any task."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert().bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=300,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", METHODS)
def test_what_it_writes_trains(tmp_path, base_folder, data_file, kind):
    method = kind.lower()
    text = draft(str(base_folder), str(data_file), method).text
    config = load(tmp_path, text, f"output_dir={tmp_path / 'out'}", "max_steps=2")
    assert config.adapter.method == method
    assert config.train.learning_rate == METHODS[kind].learning_rate
    result = train(config)
    assert result.summary["steps"] == 2
    trains = int(re.search(r"trains ([\d,]+) parameters", text)[1].replace(",", ""))
    assert result.summary["trainable_parameters"] == trains
    patterns = re.search(r"# target_modules: \[(.*?)\]", text)
    if patterns:
        assert result.model.peft_config["default"].target_modules == patterns[1].split(", ")


def test_it_is_stable(base_folder, data_file):
    assert draft(str(base_folder), str(data_file)) == draft(str(base_folder), str(data_file))


def test_every_line_is_explained(base_folder, data_file):
    for line in draft(str(base_folder), str(data_file)).text.splitlines()[1:]:
        is_setting = line.strip() and not line.endswith(":") and "Another method" not in line
        assert not is_setting or re.search(r"\S +# \S", line), line


def commented(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\s*# \w+: ", line)]


def test_what_is_commented_out_can_be_put_in(tmp_path, base_folder, data_file):
    text = draft(str(base_folder), str(data_file)).text
    settings = [line for line in commented(text) if "method: " not in line]
    assert {line.split()[1] for line in settings} >= {
        "target_modules:",
        "eval_fraction:",
        "bf16:",
        "lora_dropout:",
    }
    before = load(tmp_path, text)
    for line in settings:
        assert load(tmp_path, text.replace(line, line.replace("# ", "", 1))) != before, line


def test_another_method_can_be_put_in(tmp_path, base_folder, data_file):
    text = draft(str(base_folder), str(data_file)).text
    others = [line for line in commented(text) if "method: " in line]
    assert len(others) == len(METHODS) - 1
    seen = {"lora"}
    for line in others:
        lines = text.splitlines()
        start = lines.index("adapters:") + 1
        end = lines.index("data:")
        new = [*lines[:start], line.replace("# ", "", 1), *lines[end:]]
        config = load(tmp_path, "\n".join(new))
        seen.add(config.adapter.method)
        kind = PeftType(config.adapter.method.upper())
        assert config.resolved(bf16=False).train.learning_rate == METHODS[kind].learning_rate
    assert seen == {kind.lower() for kind in METHODS}


def lengths_of(folder, path: str, format_name: str, task: TaskType, limit: int) -> np.ndarray:
    """Of each row, by the task itself."""
    rows = read_source(resolve_source(SourceConfig(path=path)))
    made = make_task(
        load_tokenizer(str(folder)), DataConfig(train=path, max_length=limit), format_name, task
    )
    assert find_format(rows, "auto", task) == format_name
    groups = made.encode([made.read(row) for row in rows.items])
    return np.array([len(e.columns["input_ids"]) if e else limit for (e,) in groups])


def test_the_length_is_that_of_the_rows_within_what_the_model_reads(tmp_path, base_folder):
    positions = 64
    short = [{"prompt": "The cat", "completion": " sees"}] * 300
    long = [{"prompt": "The cat sees " * 40, "completion": " a fish"}]
    path = write(tmp_path / "short.jsonl", [*short, *long])
    lengths = lengths_of(base_folder, path, "prompt_completion", TaskType.CAUSAL_LM, positions)
    config = load(tmp_path, draft(str(base_folder), path).text)
    assert config.data.max_length == math.ceil(np.percentile(lengths, 99) / 64) * 64 == 64
    path = write(tmp_path / "long.jsonl", [*short, *long * 100])
    text = draft(str(base_folder), path, "prompt_tuning").text
    config = load(tmp_path, text)
    virtual = config.adapter.model_extra["num_virtual_tokens"]
    assert config.data.max_length == positions - virtual
    assert "; 100 of 400 rows are cut" in text
    assert draft(str(base_folder), path).findings[1].endswith("more than the model can read")


@pytest.mark.parametrize("count", [9, 99, 100, 999, 3000])
def test_rows_decide_what_is_set_aside_and_how_often_they_are_seen(tmp_path, base_folder, count):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * count)
    config = load(tmp_path, draft(str(base_folder), path).text)
    aside = config.data.eval_fraction * count
    assert (aside == 0) if count < 100 else (10 <= aside <= 150)
    assert config.train.load_best_model_at_end is (count >= 100)
    size = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    steps = (count - aside) / size * config.train.num_train_epochs
    assert config.train.num_train_epochs == 10 or 250 <= steps <= 600
    slower = load(tmp_path, draft(str(base_folder), path, "prompt_tuning").text)
    assert slower.train.num_train_epochs > config.train.num_train_epochs


def test_text_is_cut_into_blocks(tmp_path, base_folder):
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES * 90))
    text = draft(str(base_folder), str(tmp_path / "lines.txt")).text
    config = load(tmp_path, text, f"output_dir={tmp_path / 'out'}", "max_steps=2")
    assert config.data.format == "text"
    assert config.data.eval_fraction > 0
    assert train(config).summary["train_rows"] > 50


CASES = {
    "a label for a text": (
        [{"text": s, "label": "moon" if "moon" in s else "no"} for s in SENTENCES],
        {"llama": "SEQ_CLS", "bert": "SEQ_CLS"},
    ),
    "tags for words": (
        [{"tokens": s.split(), "tags": ["O"] * (len(s.split()) - 1) + ["B"]} for s in SENTENCES],
        {"bert": "TOKEN_CLS"},
    ),
    "questions": (
        [
            {
                "id": str(i),
                "context": s,
                "question": "who?",
                "answers": {"text": [s[:3]], "answer_start": [0]},
            }
            for i, s in enumerate(SENTENCES)
        ],
        {"bert": "QUESTION_ANS"},
    ),
    "pairs": (
        [{"input": s[:8], "target": s[8:]} for s in SENTENCES],
        {"llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"},
    ),
}


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case, (_, tasks) in CASES.items() for name in tasks]
)
def test_the_rows_say_what_the_model_is_for(tmp_path, base_folder, bert, t5, case, name):
    rows, tasks = CASES[case]
    path = write(tmp_path / "rows.jsonl", rows)
    model = {"llama": str(base_folder), "bert": bert, "t5": t5}[name]
    made = draft(model, path)
    config = load(tmp_path, made.text, f"output_dir={tmp_path / 'out'}", "max_steps=2")
    assert config.task_type == tasks[name]
    others = name == "bert" or tasks[name] == "SEQ_CLS"  # not what the model's config says
    assert ("--task-type takes another" in made.findings[-1]) is others
    assert train(config).summary["steps"] == 2


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit"])
def test_targets_are_written_as_a_run_file_takes_them(tmp_path, bert, method):
    """BERT's two `output.dense` are told apart by their whole paths, which have no short form."""
    text = draft(bert, write(tmp_path / "rows.jsonl", CASES["a label for a text"][0]), method).text
    own = text.replace("    # target_modules: [", "    target_modules: [")
    assert (own != text) is (method != "ia3")
    trained = [
        train(load(tmp_path, each, f"output_dir={tmp_path / str(place)}", "max_steps=1"))
        for place, each in enumerate((text, own))
    ]
    assert len({run.summary["trainable_parameters"] for run in trained}) == 1


def test_who_asks_for_a_task_gets_it(tmp_path, base_folder):
    path = write(tmp_path / "rows.jsonl", CASES["a label for a text"][0])
    config = load(tmp_path, draft(str(base_folder), path, task_type="causal_lm").text)
    assert (config.task_type, config.data.format) == ("CAUSAL_LM", "text")
    with pytest.raises(ConfigError, match=r"CASUAL_LM.*Did you mean CAUSAL_LM"):
        draft(str(base_folder), path, task_type="CASUAL_LM")


def test_columns_by_other_names_are_a_guess_that_is_told(tmp_path, base_folder, bert):
    path = write(tmp_path / "rows.jsonl", [{"question": s, "answer": "yes"} for s in SENTENCES])
    made = draft(str(base_folder), path)
    config = load(tmp_path, made.text)
    assert config.data.columns == {"prompt": "question", "completion": "answer"}
    assert "a guess: is it right?" in made.text
    assert "guess" in made.findings[-1]
    path = write(tmp_path / "rows.jsonl", [{"review": s, "sentiment": s[0]} for s in SENTENCES])
    assert load(tmp_path, draft(bert, path).text).data.columns == {
        "text": "review",
        "label": "sentiment",
    }


def test_a_split_to_evaluate_on(tmp_path, base_folder):
    folder = tmp_path / "orders"
    folder.mkdir()
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    for split in ("train", "validation"):
        write(folder / f"{split}.jsonl", rows)
    config = load(tmp_path, draft(str(base_folder), str(folder)).text)
    assert [source.split for source in config.data.eval_sources] == ["validation"]
    assert config.data.eval_fraction == 0
    assert next(iter(config.adapters)) == "orders"
    assert config.train.output_dir == "runs/orders"


def test_weights_are_not_needed(tmp_path, base_folder, data_file):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in base_folder.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    here = draft(str(bare), str(data_file)).text
    assert here.replace(str(bare), str(base_folder)).split() == (
        draft(str(base_folder), str(data_file)).text.split()
    )


def test_names_that_yaml_would_misread(tmp_path, base_folder):
    path = write(tmp_path / "yes: no #1.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    made = draft(str(base_folder), path)
    assert yaml.safe_load(made.text)["data"]["train"] == path
    assert next(iter(yaml.safe_load(made.text)["adapters"])) == "yes_no"


@pytest.mark.parametrize(
    ("method", "rows", "error", "words"),
    [
        ("lorra", [{"prompt": "a", "completion": "b"}], ConfigError, "Did you mean lora"),
        ("lora", [{"a": 1}], DataError, "needs one of"),
        ("lora", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}], DataError, "row 2 of"),
    ],
)
def test_what_cannot_be_drafted(tmp_path, base_folder, method, rows, error, words):
    with pytest.raises(error, match=words):
        draft(str(base_folder), write(tmp_path / "rows.jsonl", rows), method)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real material is not here")
def test_a_real_model_and_real_rows(tmp_path):
    model, data = SHARED / "lm" / "stories260K", SHARED / "instruct" / "gsm8k_train.jsonl"
    config = load(tmp_path, draft(str(model), str(data)).text)
    assert config.data.columns == {"prompt": "question", "completion": "answer"}
    assert config.data.max_length == 512
    assert config.data.eval_fraction == 0.05
