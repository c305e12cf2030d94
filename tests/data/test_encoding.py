"""One source: its tokens against each row by itself, its counts, and what is kept of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.encoding import encode_source
from graft.data.prepare import prepare_data
from graft.data.sources import Source
from graft.data.tasks import make_task
from graft.errors import DataError

Write = Callable[..., str]
PAIRS = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(20)]


def words(count: int, n: int) -> str:
    return " ".join(f"{word}{n}" for word in ("cat", "dog", "mat") * count)


QUESTIONS = [
    {"context": f"the cat {n} sat on the mat", "question": "who", "answers": answers}
    for n in range(6)
    for answers in [{"text": [f"cat {n}"], "answer_start": [4]}, {"text": [], "answer_start": []}]
]
TAGGED = [{"tokens": ["the", "cat", str(n)], "tags": ["O", "B-x", "I-x"]} for n in range(6)]
LABELLED = [{"text": words(n, n), "label": "ab"[n % 2]} for n in range(1, 8)]
ASKED = [
    {"instruction": words(1 + n % 3, n), "input": "", "output": words(1 + n % 7, n)}
    for n in range(1100)  # more than a batch
]


@pytest.mark.parametrize(
    ("task_type", "kind", "format_name", "rows"),
    [
        (TaskType.CAUSAL_LM, "chatml", "alpaca", ASKED),
        (TaskType.CAUSAL_LM, "prepended", "prompt_completion", PAIRS),
        (TaskType.CAUSAL_LM, "byte_level", "text", [{"text": words(9, 1)}, {"text": ""}] * 9),
        (TaskType.SEQ_2_SEQ_LM, "with_bos", "prompt_completion", PAIRS),
        (TaskType.SEQ_CLS, "wordpiece", "classification", LABELLED),
        (TaskType.TOKEN_CLS, "byte_level", "token_classification", TAGGED),
        (TaskType.QUESTION_ANS, "wordpiece", "question_answering", QUESTIONS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokens_are_those_of_each_row_by_itself(
    task_type: TaskType,
    kind: str,
    format_name: str,
    rows: list[dict],
    jsonl: Write,
    request: pytest.FixtureRequest,
) -> None:
    """The oracle reads and encodes one row after the other, and keeps nothing."""
    tokenizer = request.getfixturevalue(kind)
    settings = DataConfig(train=jsonl(rows), max_length=24)
    task = make_task(tokenizer, settings, format_name, task_type)
    made = [example for row in rows for example in task.encode([task.read(row)])[0]]
    examples = [example for example in made if example is not None]
    names = ["a", "b"] if task_type is TaskType.SEQ_CLS else ["B-x", "I-x", "O"]

    def plain(example: Any) -> dict[str, Any]:
        columns = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in example.columns.items()
        }
        if task_type is TaskType.SEQ_CLS:
            columns["labels"] = names.index(columns["labels"])
        if task_type is TaskType.TOKEN_CLS:
            columns["labels"] = [-100 if t is None else names.index(t) for t in columns["labels"]]
        return columns

    expected = [plain(example) for example in examples]
    tokens = sum(len(row["input_ids"]) for row in expected)
    if task_type is TaskType.SEQ_2_SEQ_LM:
        tokens += sum(len(row["labels"]) for row in expected)
    heard: list[str] = []
    for changes in ({}, {}, {"use_cache": False}):
        config = settings.model_copy(update=changes)
        data = prepare_data(config, tokenizer, task_type, 0, heard.append)
        assert list(data.train) == expected
        assert data.rows_read == len(rows)
        assert data.rows_dropped == len(made) - len(examples)
        assert data.rows_truncated == sum(example.truncated for example in examples)
        assert data.tokens == tokens
    count, name = f"{len(rows):,}", settings.train
    assert heard == [
        f"tokenising {count} rows of {name}",
        f"{count} rows of {name}: tokens from the cache",
        f"tokenising {count} rows of {name}",
    ]


def test_places_are_kept(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [
        {"prompt": "the cat", "completion": " sat"},
        {"prompt": "the cat " * 20, "completion": " sat"},
        {"prompt": "the cat", "completion": " sat" * 20},
    ]
    path = jsonl(rows)
    config = DataConfig(train=path, max_length=8)
    source = Source(name=path, files=(Path(path),))
    for cached in (False, True):
        encoded = encode_source(source, byte_level, config, TaskType.CAUSAL_LM)
        assert encoded.cached is cached
        assert encoded.rows["row"][:] == [0, 2]
        assert encoded.rows["truncated"][:] == [False, True]
        assert encoded.rows["answer_cut"][:] == [False, True]
        assert encoded.dropped == [1]
        assert (encoded.format, encoded.limit, encoded.rows_read) == ("prompt_completion", 8, 3)


def test_a_file_of_nothing_to_learn_is_no_row(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    path = jsonl([{"text": ""}, {"text": " "}])
    source = Source(name=path, files=(Path(path),))
    for cached in (False, True):
        encoded = encode_source(source, byte_level, DataConfig(train=path), TaskType.CAUSAL_LM)
        assert (len(encoded.rows), encoded.dropped, encoded.cached) == (0, [0, 1], cached)


def test_a_bad_row_leaves_nothing_behind(
    byte_level: PreTrainedTokenizerBase, jsonl: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))

    def prepare(rows: list[dict], **settings: Any) -> None:
        config = DataConfig(train=jsonl(rows), **settings)
        prepare_data(config, byte_level, TaskType.CAUSAL_LM, 0)

    rows: list[dict] = [*ASKED[:1050], {"instruction": "a", "output": ""}, *ASKED[:9]]
    with pytest.raises(DataError, match=r"row 1051 of .*data\.jsonl: output is empty"):
        prepare(rows)
    assert list((tmp_path / "cache").iterdir()) == []
    prepare(PAIRS, use_cache=False)
    assert list((tmp_path / "cache").iterdir()) == []
    prepare(PAIRS)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written(
    byte_level: PreTrainedTokenizerBase, jsonl: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be kept in .*file: .*GRAFT_CACHE.*use_cache"):
        prepare_data(DataConfig(train=jsonl(PAIRS)), byte_level, TaskType.CAUSAL_LM, 0)


def test_long_work_is_heard_of_and_leaves_the_environment_as_it_was(
    byte_level: PreTrainedTokenizerBase, jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.data.encoding._PATIENCE", -1.0)
    path = jsonl(ASKED)
    source, config = Source("x", (Path(path),)), DataConfig(train=path, use_cache=False)
    for before in ("false", None):
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        if before is not None:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        heard: list[tuple[str, str | None]] = []

        def tell(text: str) -> None:
            heard.append((text, os.environ.get("TOKENIZERS_PARALLELISM")))  # noqa: B023

        encode_source(source, byte_level, config, TaskType.CAUSAL_LM, tell)
        assert heard == [
            ("tokenising 1,100 rows of x", before),
            ("tokenised 1,000 of 1,100 rows", "true"),
            ("tokenised 1,100 of 1,100 rows", "true"),
        ]
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
