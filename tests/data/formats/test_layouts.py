from pathlib import Path
from typing import get_args

import pytest

from graft.config import TaskType
from graft.data.config import FormatName
from graft.data.formats import (
    FORMATS,
    find_format,
    read_batches,
    read_label,
    rename_columns,
)
from graft.data.rows import Row, Rows
from graft.errors import DataError


def rows(*items: Row) -> Rows:
    return Rows(list(items), [(Path("f.jsonl"), len(items))])


@pytest.mark.parametrize(
    ("columns", "task_type", "expected"),
    [
        ("messages prompt", "CAUSAL_LM", "messages"),
        ("conversations id", "CAUSAL_LM", "sharegpt"),
        ("instruction input output text", "CAUSAL_LM", "alpaca"),
        ("prompt completion", "CAUSAL_LM", "prompt_completion"),
        ("text label", "CAUSAL_LM", "text"),
        ("text label", "SEQ_CLS", "classification"),
        ("instruction output", "SEQ_2_SEQ_LM", "alpaca"),
        ("prompt completion text", "SEQ_2_SEQ_LM", "prompt_completion"),
        ("input target", "SEQ_2_SEQ_LM", "seq2seq"),
        ("input target", "CAUSAL_LM", "seq2seq"),
        ("instruction input output target", "SEQ_2_SEQ_LM", "alpaca"),
        ("tokens tags", "TOKEN_CLS", "token_classification"),
        ("context question answers", "QUESTION_ANS", "question_answering"),
        ("context question answer answer_start", "QUESTION_ANS", "question_answering"),
    ],
)
def test_auto(columns: str, task_type: str, expected: str) -> None:
    data = rows(dict.fromkeys(columns.split(), "x"))
    assert find_format(data, "auto", TaskType(task_type)) == expected


@pytest.mark.parametrize(
    ("columns", "task_type", "message"),
    [
        ("question answer", "CAUSAL_LM", "columns: {prompt: question, completion: answer}"),
        ("context question answer", "CAUSAL_LM", "columns: {prompt: question, completion: answer}"),
        ("mr ref", "SEQ_2_SEQ_LM", "columns: {input: mr, target: ref}"),
        ("words ner", "TOKEN_CLS", "columns: {tokens: words, tags: ner}"),
        (
            "tokens tags",
            "SEQ_CLS",
            "those of token_classification, which is for TOKEN_CLS.",
        ),
        ("sentence label", "SEQ_CLS", "columns: {text: sentence, label: label}"),
        ("Instruction Output", "CAUSAL_LM", "{instruction: Instruction, output: Output}"),
        ("foo bar", "CAUSAL_LM", "has the columns foo, bar; CAUSAL_LM needs one of: messages"),
        ("text", "SEQ_CLS", "text + label (classification)"),
        ("text", "FEATURE_EXTRACTION", "expected one of CAUSAL_LM, QUESTION_ANS, SEQ_2_SEQ_LM, "),
    ],
)
def test_auto_that_finds_nothing_suggests(columns: str, task_type: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        find_format(rows(dict.fromkeys(columns.split(), "x")), "auto", TaskType(task_type))
    assert message in str(error.value)


def test_a_given_format_must_fit() -> None:
    data = rows({"instruction": "a", "outptu": "b"})
    with pytest.raises(
        DataError, match=r"no column 'output' \(format alpaca\)\. Did you mean outp"
    ):
        find_format(data, "alpaca", TaskType.CAUSAL_LM)
    with pytest.raises(DataError, match="classification is not for CAUSAL_LM; expected one of"):
        find_format(data, "classification", TaskType.CAUSAL_LM)
    with pytest.raises(DataError, match=r"columns: \{prompt: question, completion: answer\}"):
        find_format(rows({"question": "", "answer": ""}), "prompt_completion", TaskType.CAUSAL_LM)
    with pytest.raises(DataError, match="Its columns are those of text: set format: text beside"):
        find_format(rows({"text": ""}), "prompt_completion", TaskType.CAUSAL_LM)


def test_columns_are_renamed_and_their_old_names_are_gone() -> None:
    data = rows({"instruction": "q", "output": "a", "id": 1}, {"instruction": "r"})
    renamed = rename_columns(data, {"prompt": "instruction", "completion": "output"})
    assert renamed.items == [
        {"prompt": "q", "completion": "a", "id": 1},
        {"prompt": "r", "completion": None},
    ]
    assert find_format(renamed, "auto", TaskType.CAUSAL_LM) == "prompt_completion"


def test_a_renamed_column_wins_over_one_of_that_name() -> None:
    renamed = rename_columns(rows({"text": "old", "body": "new"}), {"text": "body"})
    assert renamed.items == [{"text": "new"}]


def test_pairs_may_be_called_text_a_and_text_b() -> None:
    pair = {"text": "a", "text_pair": "b", "label": "x"}
    assert rename_columns(rows({"text_a": "a", "text_b": "b", "label": "x"}), {}).items == [pair]
    assert rename_columns(rows({"text": "a", "text_b": "b", "label": "x"}), {}).items == [pair]
    named = rename_columns(rows({"p": "a", "q": "b", "label": "x"}), {"text_a": "p", "text_b": "q"})
    assert named.items == [{"label": "x", "text": "a", "text_pair": "b"}]


def test_columns_that_do_not_exist() -> None:
    data = rows({"question": "q"})
    with pytest.raises(DataError, match=r"'promt' is not a column that graft knows\. Did you mean"):
        rename_columns(data, {"promt": "question"})
    with pytest.raises(
        DataError, match=r"no column 'questoin' \(given for prompt\)\. Did you mean"
    ):
        rename_columns(data, {"prompt": "questoin"})


def test_all_bad_rows_are_named_at_once() -> None:
    data = rows(*[{"text": "a", "label": "x" if index % 2 else None} for index in range(16)])
    with pytest.raises(DataError) as error:
        list(read_batches(data, read_label, 2))
    assert str(error.value) == (
        "row 1 of f.jsonl: no label: add it, or remove the row. "
        "7 more cannot be used: row 3, row 5, row 7, row 9, row 11, ..."
    )


def test_every_format_can_be_asked_for() -> None:
    assert set(get_args(FormatName)) == {"auto", *FORMATS}


QA = ("context", "question", "answer", "answer_start")


@pytest.mark.parametrize(
    ("given", "columns", "expected"),
    [
        ("tokens ner_tags", {}, "tokens tags"),
        ("tokens labels", {}, "tokens tags"),
        ("tokens labels ner_tags", {}, "tokens labels tags"),
        ("tokens tags ner_tags", {}, "tokens tags ner_tags"),
        ("labels", {}, "labels"),  # without tokens it may be anything
        ("context question answer", {}, "context question answer"),
        ("c q a s", dict(zip(QA, "cqas", strict=True)), " ".join(QA)),
        ("text_b", {}, "text_b"),
        ("words ner_tags", {"tokens": "words"}, "tokens tags"),
        ("q a", {"query": "q", "response": "a"}, "input output"),
        ("p q a", {"prompt": "p", "query": "q", "response": "a"}, "instruction input output"),
        ("p a", {"prompt": "p", "completion": "a"}, "prompt completion"),
        (
            "p a h",
            {"instruction": "p", "response": "a", "history": "h"},
            "instruction output histo",
        ),
    ],
)
def test_names_of_columns(given: str, columns: dict[str, str], expected: str) -> None:
    renamed = rename_columns(rows({name: name for name in given.split()}), columns)
    assert " ".join(renamed.columns).startswith(expected)
    for name, value in renamed.items[0].items():
        assert value == columns.get(name, value)
    assert len(renamed.columns) == len(given.split())
