"""Each finding: there where a file has the fault, not there where it has not."""

import copy
import dataclasses
from collections.abc import Callable
from itertools import product
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.check import Origin
from graft.data.check.examples import gather
from graft.data.check.tokens import token_findings
from graft.data.config import DataConfig
from graft.data.encoding import encode_source
from graft.data.prepare import prepare_data
from graft.data.rendering import end_tokens
from graft.data.sources import read_source, resolve_source
from graft.errors import DataError

from .cases import Rows, check, finding, rows_of

Write = Callable[..., str]

WORDS = [" ".join(words) for words in product(["cat", "dog", "mat", "red"], repeat=3)][:40]
PAIRS = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(40)]
CHATS = [{"instruction": f"ask {n}", "output": f"say {n}"} for n in range(40)]
CLASSES = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(WORDS)]
TAGS = [{"tokens": text.split(), "tags": ["O", "B", "O"]} for text in WORDS]
FORGETFUL = (  # ends no turn
    "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def broken(rows: Rows, count: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Rows:
    """`rows` with the last `count` of them changed."""
    kept = len(rows) - count
    return [row if index < kept else change(row) for index, row in enumerate(rows)]


LONG = " sat" * 120


# name, tokenizer, the rows, what makes one faulty, settings, how many faulty rows spoil the run
CASES = [
    ("truncated-answers", "byte_level", PAIRS, lambda r: {**r, "completion": LONG},
     {"max_length": 40}, 10),
    ("nothing-to-train-on", "byte_level", PAIRS, lambda r: {**r, "prompt": LONG},
     {"max_length": 40}, 10),
    ("truncated-answers", "wordpiece", TAGS,
     lambda r: {"tokens": r["tokens"] * 20, "tags": r["tags"] * 20},
     {"max_length": 40, "task_type": TaskType.TOKEN_CLS}, 10),
    ("truncated-rows", "wordpiece", CLASSES, lambda r: {**r, "text": r["text"] + LONG},
     {"max_length": 40, "task_type": TaskType.SEQ_CLS}, None),
    ("double-bos", "prepended", PAIRS, lambda r: {**r, "prompt": "<s><s>" + r["prompt"]}, {}, 1),
    ("special-tokens-in-text", "chatml", CHATS, lambda r: {**r, "output": "a<|im_end|>b"}, {}, 10),
    ("special-tokens-in-text", "chatml", PAIRS, lambda r: {**r, "prompt": "<|im_start|>a"}, {}, 10),
    ("special-tokens-in-text", "byte_level", PAIRS, lambda r: {**r, "prompt": "a</s>b"}, {}, None),
    ("placeholders", "byte_level", PAIRS, lambda r: {**r, "prompt": "{{name}}" + r["prompt"]},
     {}, None),
    ("broken-text", "byte_level", PAIRS, lambda r: {**r, "prompt": r["prompt"] + "\ufffd"}, {}, 10),
    ("broken-text", "byte_level", PAIRS,
     lambda r: {**r, "prompt": r["prompt"] + "é你".encode().decode("latin-1")}, {}, 10),
    ("empty-rows", "byte_level", PAIRS, lambda r: {**r, "prompt": " "}, {}, 10),
    ("empty-rows", "chatml", CHATS, lambda r: {**r, "instruction": ""}, {}, 10),
    ("duplicates", "byte_level", PAIRS, lambda r: PAIRS[0], {}, None),
    ("duplicates", "wordpiece", CLASSES, lambda r: CLASSES[0], {"task_type": TaskType.SEQ_CLS},
     None),
    ("different-answers", "byte_level", PAIRS, lambda r: {**r, "prompt": "the cat 0"}, {}, None),
    ("different-answers", "wordpiece", CLASSES,
     lambda r: {**r, "text": WORDS[CLASSES.index(r) - 21]}, {"task_type": TaskType.SEQ_CLS}, 10),
    ("different-answers", "wordpiece", TAGS,
     lambda r: {"tokens": TAGS[TAGS.index(r) - 21]["tokens"], "tags": ["O", "O", "B"]},
     {"task_type": TaskType.TOKEN_CLS}, 10),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "rows", "fault", "settings", "spoils"), CASES)
def test_a_fault_is_found_where_it_is(
    name: str,
    kind: str,
    rows: Rows,
    fault: Callable[[dict[str, Any]], dict[str, Any]],
    settings: dict[str, Any],
    spoils: int | None,
    jsonl: Write,
    request: pytest.FixtureRequest,
) -> None:
    tokenizer = request.getfixturevalue(kind)
    clean = check(tokenizer, jsonl(rows), **settings)
    assert finding(clean, name) is None
    assert not clean.spoiled
    few = finding(check(tokenizer, jsonl(broken(rows, 1, fault)), **settings), name)
    assert few is not None
    assert rows_of(few) == [40]
    assert few.cure
    for count in (1, 9, 10):
        report = check(tokenizer, jsonl(broken(rows, count, fault)), **settings)
        found = finding(report, name)
        assert found is not None
        expected = "spoils" if spoils is not None and count >= spoils else "remark"
        assert (found.count, found.severity) == (count, expected)
        assert found.share == count / 40
        assert report.spoiled == any(f.severity == "spoils" for f in report.findings)


def test_nothing_to_learn_at_all(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{**row, "prompt": LONG} for row in PAIRS]
    with pytest.raises(DataError, match=r"Nothing is left to learn in the rows of .* to 40 tokens"):
        check(byte_level, jsonl(rows), max_length=40)


def test_a_forgetful_template_is_no_trouble(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    turns = [{"role": role, "content": text} for role, text in said]
    forgetful = copy.deepcopy(chatml)
    forgetful.chat_template = FORGETFUL
    report = check(forgetful, jsonl([{"messages": turns[:2]}, {"messages": turns}]))
    assert finding(report, "missing-end-token") is None


def test_answers_that_nothing_ends(with_bos: PreTrainedTokenizerBase, jsonl: Write) -> None:
    """Such rows come of no file, as every answer is given its end: made by hand."""
    path = jsonl(PAIRS)
    config = DataConfig(train=path)
    (entry,) = config.train_sources
    source = resolve_source(entry)
    encoded = encode_source(source, with_bos, config, TaskType.CAUSAL_LM)
    ids = encoded.rows["input_ids"][:]
    assert all(row[-1] == with_bos.eos_token_id for row in ids)
    for endless, severity in ((0, None), (1, "spoils"), (40, "spoils")):
        kept = [row[:-1] if at >= 40 - endless else row for at, row in enumerate(ids)]
        labels = [[-100, *row[1:]] for row in kept]
        rows = datasets.Dataset.from_dict(
            {"input_ids": kept, "labels": labels, "row": range(40)}
            | dict.fromkeys(["truncated", "answer_cut"], [False] * 40)
        )
        made = dataclasses.replace(encoded, rows=rows)
        held = np.zeros(40, bool)
        examples = gather([made], [read_source(source)], held, TaskType.CAUSAL_LM)
        ends = frozenset(end_tokens(with_bos, None).values())
        found = list(token_findings(examples, with_bos, ends, 99, "raise"))
        assert [(f.name, f.severity, f.count) for f in found] == [
            ("missing-end-token", severity, endless)
        ] * bool(endless)


def test_a_text_may_go_on(with_bos: PreTrainedTokenizerBase, jsonl: Write) -> None:
    text = " ".join(f"the cat sat {n}" for n in range(90))
    report = check(with_bos, jsonl([{"text": text}]), max_length=20)
    assert report.train.rows > 9
    assert report.findings == ()


@pytest.mark.parametrize("kind", ["chatml", "byte_level"])
def test_counts_are_those_of_the_run(
    kind: str, jsonl: Write, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    rows = [
        {"prompt": "the cat " * (n % 7) * 3, "completion": "sat " * (n % 11 + 1)} for n in range(60)
    ]
    path = jsonl(rows)
    settings = {"max_length": 24, "eval_fraction": 0.3}
    report = check(tokenizer, path, seed=5, **settings)
    data = prepare_data(DataConfig(train=path, **settings), tokenizer, TaskType.CAUSAL_LM, seed=5)
    assert report.dropped == data.rows_dropped > 0
    assert report.eval is not None
    assert data.eval is not None
    assert report.train.truncated + report.eval.truncated == data.rows_truncated > 0
    for side, prepared in ((report.train, data.train), (report.eval, data.eval)):
        sizes = sorted(len(ids) for ids in prepared["input_ids"])
        learned = [sum(label != -100 for label in labels[1:]) for labels in prepared["labels"]]
        assert (side.rows, side.tokens) == (len(sizes), sum(sizes))
        assert (side.shortest, side.longest) == (sizes[0], sizes[-1])
        assert side.learned == sum(learned)
        for share, value in ((0.5, side.median), (0.95, side.p95)):
            assert sum(size <= value for size in sizes) >= share * len(sizes)
            assert sum(size < value for size in sizes) < share * len(sizes)
    assert report.limit == 24
    assert report.origins == (Origin(path, 60, held=False),)


def test_labels_are_counted(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    report = check(wordpiece, jsonl(CLASSES[:5]), TaskType.SEQ_CLS)
    assert report.train.labels == {"a": 3, "b": 2}
    assert report.train.learned == 0
    report = check(wordpiece, jsonl(TAGS[:5]), TaskType.TOKEN_CLS)
    assert report.train.labels == {"O": 10, "B": 5}
    assert report.train.learned == 15


def test_targets_that_are_cut(with_bos: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{"input": "the cat", "target": "the mat"}, {"input": "a dog", "target": LONG}]
    report = check(with_bos, jsonl(rows), TaskType.SEQ_2_SEQ_LM, max_length=30)
    found = finding(report, "truncated-answers")
    assert found is not None
    assert rows_of(found) == [2]
    report = check(with_bos, jsonl(rows), TaskType.SEQ_2_SEQ_LM, max_length=600)
    assert report.findings == ()


def test_the_cure_of_length_is_one_that_works(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    path = jsonl(broken(PAIRS, 1, lambda row: {**row, "completion": LONG}))
    short = copy.deepcopy(byte_level)
    short.model_max_length = 40
    for tokenizer, settings, raised in (
        (byte_level, {"max_length": 40}, True),
        (byte_level, {"max_length": 40, "room": 41}, True),
        (byte_level, {"max_length": 40, "room": 40}, False),
        (short, {"max_length": 400}, False),
    ):
        found = finding(check(tokenizer, path, **settings), "truncated-answers")
        assert found is not None
        assert found.cure.startswith("raise max_length") == raised
        assert ("reads no more" in found.cure) != raised


def test_fewer_rows_than_a_step(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl(PAIRS)
    assert finding(check(byte_level, path, rows_per_step=40), "few-rows") is None
    found = finding(check(byte_level, path, rows_per_step=41), "few-rows")
    assert found is not None
    assert (found.count, found.share, found.severity) == (40, 1.0, "remark")


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_a_script_that_is_spelled(kind: str, jsonl: Write, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    russian = [{"prompt": "как дела " * (n + 1), "completion": f"хорошо {n}"} for n in range(9)]
    found = finding(check(tokenizer, jsonl(russian)), "characters-in-bytes")
    assert found is not None
    assert (found.unit, found.severity) == ("tokens", "remark")
    ids = [
        token
        for row in russian
        for token in tokenizer(row["prompt"] + row["completion"])["input_ids"]
    ]
    parts = sum("\ufffd" in tokenizer.decode([token]) for token in ids)
    assert found.count == pytest.approx(parts, rel=0.05)
    assert finding(check(tokenizer, jsonl(PAIRS)), "characters-in-bytes") is None


def test_what_the_tokenizer_does_not_know(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [*CLASSES, {"text": "龘 龘 龘", "label": "a"}]
    report = check(wordpiece, jsonl(rows), TaskType.SEQ_CLS)
    found = finding(report, "unknown-tokens")
    assert found is not None
    total = sum(len(wordpiece(row["text"])["input_ids"]) for row in rows)
    assert (found.count, found.share, found.severity) == (3, 3 / total, "remark")
    assert rows_of(found) == [41]
    rows += [{"text": f"龘 龘 龘 {text}", "label": "a"} for text in WORDS[:9]]
    found = finding(check(wordpiece, jsonl(rows), TaskType.SEQ_CLS), "unknown-tokens")
    assert found is not None
    assert found.severity == "spoils"
    assert finding(check(wordpiece, jsonl(CLASSES), TaskType.SEQ_CLS), "unknown-tokens") is None
