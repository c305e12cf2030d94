"""Tags of words and answers in texts, from a file of rows to what the adapter says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForQuestionAnswering, BertForTokenClassification

from graft import LoraConfig
from graft.adapt import get_peft_model
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.data.spans import Span
from graft.inference import Predictor
from graft.training.batches import make_batch
from graft.training.evaluate import evaluate
from graft.training.metrics import entity_f1, span_scores
from graft.training.run import TrainResult, train
from graft.training.runfile import parse_run_config
from tiny import SENTENCES, bert_config, make_tokenizer, tiny_bert

from .conftest import fit_one

CPU = torch.device("cpu")
NAMES = ["B-who", "I-who", "O"]


def tag_rows() -> list[dict[str, Any]]:
    """The first two words of each sentence are who, the others nothing."""
    words = [sentence.split() for sentence in SENTENCES]
    return [{"tokens": w, "tags": ["B-who", "I-who", *["O"] * (len(w) - 2)]} for w in words]


def question_rows() -> list[dict[str, Any]]:
    """Texts of one to three sentences; who is at the beginning, what at the end."""
    rows: list[dict[str, Any]] = []
    for number, sentence in enumerate(SENTENCES):
        text = " ".join([sentence] * (number % 3 + 1))
        who, what = " ".join(sentence.split()[:2]), " ".join(sentence.split()[-2:])
        for question, answer, start in [("who", who, 0), ("what", what, text.rindex(what))]:
            answers = {"text": [answer], "answer_start": [start]}
            rows.append({"question": question, "context": text, "answers": answers})
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def write(rows: list[dict[str, Any]]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def tag_data(write) -> list[dict[str, Any]]:
    config = DataConfig(train=write(tag_rows()), max_length=40)
    data = prepare_data(config, make_tokenizer(), TaskType.TOKEN_CLS, 0)
    assert data.label_names == NAMES
    return list(data.train)


@pytest.fixture
def answer_data(write) -> list[dict[str, Any]]:
    """Some texts are read in several windows."""
    config = DataConfig(train=write(question_rows()), max_length=16)
    data = prepare_data(config, make_tokenizer(), TaskType.QUESTION_ANS, 0)
    assert len(data.train) > len(question_rows())
    return list(data.train)


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_tags_are_scored_word_by_word(tag_data, batch_size):
    torch.manual_seed(0)
    names = dict(enumerate(NAMES))
    model = BertForTokenClassification(bert_config(id2label=names)).eval()
    collate = Collator(make_tokenizer(), TaskType.TOKEN_CLS)
    metrics = evaluate(model, tag_data, collate, TaskType.TOKEN_CLS, batch_size, CPU)
    said, right, losses = [], [], []
    with torch.no_grad():
        for row in tag_data:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            labels = [label for label in row["labels"] if label != -100]
            learned = logits[[at for at, label in enumerate(row["labels"]) if label != -100]]
            said.append([NAMES[n] for n in learned.argmax(-1).tolist()])
            right.append([NAMES[n] for n in labels])
            chances = learned.log_softmax(-1)
            losses += [-chances[i, label].item() for i, label in enumerate(labels)]
    assert right == [row["tags"] for row in tag_rows()]
    pairs = [(a, b) for x, y in zip(said, right, strict=True) for a, b in zip(x, y, strict=True)]
    assert metrics == pytest.approx(
        {
            "loss": sum(losses) / len(losses),
            "accuracy": sum(a == b for a, b in pairs) / len(pairs),
            "f1": entity_f1(said, right),
        },
        rel=1e-4,
    )


def test_tags_without_kinds_have_no_entities(tag_data):
    names = {0: "NOUN", 1: "VERB", 2: "X"}
    model = BertForTokenClassification(bert_config(id2label=names))
    collate = Collator(make_tokenizer(), TaskType.TOKEN_CLS)
    metrics = evaluate(model, tag_data, collate, TaskType.TOKEN_CLS, 8, CPU)
    assert set(metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_answers_are_scored_question_by_question(answer_data, batch_size):
    """However windows fall into batches; one span for each question, found by brute force."""
    torch.manual_seed(0)
    model = BertForQuestionAnswering(bert_config()).eval()
    collate = Collator(make_tokenizer(), TaskType.QUESTION_ANS)
    metrics = evaluate(model, answer_data, collate, TaskType.QUESTION_ANS, batch_size, CPU)
    texts: list[list[dict[str, Any]]] = []
    for row in answer_data:
        if row["context_at"] == 0:
            texts.append([])
        texts[-1].append(row)
    assert len(texts) == len(question_rows())
    scores = [span_scores(said_of(model, windows), right_of(windows)) for windows in texts]
    assert metrics["exact_match"] == pytest.approx(sum(s[0] for s in scores) / len(scores))
    assert metrics["f1"] == pytest.approx(sum(s[1] for s in scores) / len(scores))
    assert set(metrics) == {"loss", "exact_match", "f1"}


def said_of(model: Any, windows: list[dict[str, Any]]) -> Span | None:
    spans: list[tuple[float, Span]] = []
    nowhere: list[float] = []
    for row in windows:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row["input_ids"]]))
        starts, ends = out.start_logits[0].softmax(-1), out.end_logits[0].softmax(-1)
        nowhere.append(float(starts[row["nowhere"]] * ends[row["nowhere"]]))
        move = row["context_at"] - row["context_start"]
        places = range(row["context_start"], row["context_stop"])
        spans += [
            (float(starts[i] * ends[j]), Span(i + move, j + move))
            for i in places
            for j in places
            if i <= j
        ]
    _, span = max(spans)
    return None if math.prod(nowhere) > 0.5 else span


def right_of(windows: list[dict[str, Any]]) -> Span | None:
    for row in windows:
        move = row["context_at"] - row["context_start"]
        if row["start_positions"] >= row["context_start"]:
            return Span(row["start_positions"] + move, row["end_positions"] + move)
    return None


def test_a_row_of_answers_is_one_target(answer_data):
    collate = Collator(make_tokenizer(), TaskType.QUESTION_ANS)
    assert make_batch(answer_data[:5], collate, TaskType.QUESTION_ANS).targets == 5


# --- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", [TaskType.TOKEN_CLS, TaskType.QUESTION_ANS])
def test_only_adapter_and_head_learn(task_type, tag_data, answer_data, settings):
    torch.manual_seed(0)
    if task_type is TaskType.TOKEN_CLS:
        base, rows = BertForTokenClassification(bert_config(num_labels=3)), tag_data
    else:
        base, rows = BertForQuestionAnswering(bert_config()), answer_data
    backbone = {name: p.clone() for name, p in base.bert.state_dict().items()}
    model = get_peft_model(base, LoraConfig(task_type=task_type, target_modules="all-linear"))
    collate = Collator(make_tokenizer(), task_type)
    run = fit_one(model, rows, rows[:6], collate, settings, task_type=task_type)
    assert run.records[-1]["eval_loss"] < run.records[0]["eval_loss"]
    after = base.bert.state_dict()
    assert all(torch.equal(after[name], value) for name, value in backbone.items())


def run_of(base: Path, data: str, out: Path, task_type: str, **settings: Any) -> TrainResult:
    raw = {
        "base_model": str(base),
        "task_type": task_type,
        "adapters": {"own": {"method": "lora", "r": 8, "target_modules": "all-linear"}},
        "data": {"train": data, "max_length": 40, "eval_fraction": 0.2},
        "train": {
            "output_dir": str(out),
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-2,
            "logging_steps": 40,
            **settings,
        },
    }
    return train(parse_run_config(raw))


@pytest.fixture
def bert_folder(tmp_path) -> Path:
    tiny_bert().bert.save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_tags_from_file_to_words(write, bert_folder, tmp_path):
    result = run_of(bert_folder, write(tag_rows()), tmp_path / "out", "TOKEN_CLS", max_steps=60)
    assert result.summary["label_names"] == NAMES
    assert result.summary["eval_last"]["f1"] == 1
    said = Predictor.load(tmp_path / "out").tag([row["tokens"] for row in tag_rows()])
    assert said == [row["tags"] for row in tag_rows()]


def test_answers_from_file_to_text(write, bert_folder, tmp_path):
    rows = question_rows()
    result = run_of(bert_folder, write(rows), tmp_path / "out", "QUESTION_ANS", max_steps=150)
    assert result.summary["eval_last"]["f1"] > 0.5 > result.summary["eval_before"]["f1"]
    predictor = Predictor.load(tmp_path / "out")
    found = predictor.extract([(row["question"], row["context"]) for row in rows])
    right = [
        (answer.text, answer.start)
        == (row["answers"]["text"][0], row["answers"]["answer_start"][0])
        for answer, row in zip(found, rows, strict=True)
    ]
    assert sum(right) > 0.5 * len(rows)
