from pathlib import Path
from typing import get_args

import pytest

from graft.config import TaskType
from graft.data.config import FormatName
from graft.data.formats import (
    FORMATS,
    find_format,
    read_each,
    read_label,
    read_messages,
    read_pair,
    rename_columns,
)
from graft.data.sources import Row, Rows
from graft.errors import DataError


def rows(*items: Row) -> Rows:
    return Rows(list(items), [(Path("f.jsonl"), len(items))])


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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
    ],
)
def test_auto(columns: str, task_type: str, expected: str) -> None:
    data = rows(dict.fromkeys(columns.split(), "x"))
    assert find_format(data, "auto", TaskType(task_type)) == expected


@pytest.mark.parametrize(
    ("columns", "task_type", "message"),
    [
        ("question answer", "CAUSAL_LM", "columns: {prompt: question, completion: answer}"),
        ("mr ref", "SEQ_2_SEQ_LM", "columns: {input: mr, target: ref}"),
        ("words ner", "TOKEN_CLS", "columns: {tokens: words, tags: ner}"),
        (
            "tokens tags",
            "SEQ_CLS",
            "those of token_classification, which is for TOKEN_CLS.",
        ),
        ("sentence label", "SEQ_CLS", "columns: {text: sentence, label: label}"),
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


@pytest.mark.parametrize("nothing", [None, "", "absent"])
def test_alpaca(nothing: str | None) -> None:
    row = {"instruction": "Add.", "input": nothing, "output": "3", "history": nothing}
    if nothing == "absent":
        del row["input"], row["history"]
    expected = [turn("user", "Add."), turn("assistant", "3")]
    assert read_messages(row, "alpaca") == expected


def test_alpaca_with_everything() -> None:
    row = {
        "system": "Be brief.",
        "history": [["Hi", "Hello"], ["1+1", 2]],
        "instruction": "Add.",
        "input": "1 2",
        "output": 3,
    }
    assert read_messages(row, "alpaca") == [
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("assistant", "Hello"),
        turn("user", "1+1"),
        turn("assistant", "2"),
        turn("user", "Add.\n1 2"),
        turn("assistant", "3"),
    ]


def test_sharegpt_roles() -> None:
    said = [("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("assistant", "d")]
    row = {"conversations": [{"from": who, "value": what} for who, what in said]}
    roles = ["system", "user", "assistant", "user", "assistant"]
    expected = [turn(role, what) for role, (_, what) in zip(roles, said, strict=True)]
    assert read_messages(row, "sharegpt") == expected
    row["conversations"] = row["conversations"][1:]
    assert read_messages({**row, "system": "s"}, "sharegpt") == expected


def test_messages_keep_what_templates_may_ask_for() -> None:
    thought = {**turn("assistant", "b"), "reasoning_content": "why", "tool_calls": None}
    read = read_messages({"messages": [turn("user", "a"), thought]}, "messages")
    assert read[1] == {**turn("assistant", "b"), "reasoning_content": "why"}


@pytest.mark.parametrize(
    ("format_name", "row", "message"),
    [
        ("messages", {"messages": [turn("usr", "a")]}, "'usr' is not a role. Did you mean user"),
        ("messages", {"messages": [{"content": "a"}]}, "None is not a role. Valid: "),
        ("messages", {"messages": [turn("user", "a")]}, "no assistant turn"),
        ("messages", {"messages": []}, "no assistant turn"),
        ("messages", {"messages": "hi"}, "expected a list of turns"),
        ("messages", {"messages": ["hi"]}, "expected a list of turns"),
        ("messages", {"messages": [turn("user", "a"), turn("assistant", " ")]}, "turn is empty"),
        ("messages", {"messages": [turn("assistant", "a")]}, "begins with an assistant turn"),
        ("messages", {"messages": [{"role": "user", "content": [1]}]}, "expected text, not a list"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, "'bot' is not a role"),
        ("alpaca", {"instruction": "a", "output": None}, "output is empty: fill it in, or remove"),
        ("alpaca", {"instruction": True, "output": "a"}, "instruction: expected text, not true"),
        ("alpaca", {"instruction": "a", "output": "b", "history": 3}, "[user, assistant] pairs"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "entry 1: expected a ["),
        ("prompt_completion", {"prompt": "a", "completion": " "}, "completion is empty"),
    ],
)
def test_rows_without_something_to_learn(format_name: str, row: Row, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_messages(row, format_name)
    assert message in str(error.value)


def test_pairs() -> None:
    assert read_pair({"prompt": "a", "completion": "b"}, "prompt_completion") == ("a", "b")
    row = {"system": "s", "instruction": "i", "input": "j", "output": "o"}
    assert read_pair(row, "alpaca") == ("s\ni\nj", "o")


def test_labels() -> None:
    assert read_label({"text": "a", "label": 3}) == ("a", None, "3")
    assert read_label({"text": "a", "text_pair": "b", "label": "x"}) == ("a", "b", "x")
    for row, message in [
        ({"text": "a", "label": None}, "no label"),
        ({"text": "a", "label": ""}, "no label"),
        ({"text": "a"}, "no label"),
        ({"text": "a", "label": 0.5}, "0.5: expected text or a whole number"),
        ({"text": "", "label": 1}, "text is empty"),
    ]:
        with pytest.raises(DataError) as error:
            read_label(row)
        assert message in str(error.value)


def test_all_bad_rows_are_named_at_once() -> None:
    data = rows(*[{"text": "a", "label": "x" if index % 2 else None} for index in range(16)])
    with pytest.raises(DataError) as error:
        read_each(data, read_label)
    assert str(error.value) == (
        "row 1 of f.jsonl: no label: add it, or remove the row. "
        "7 more cannot be used: row 3, row 5, row 7, row 9, row 11, ..."
    )


def test_every_format_can_be_asked_for() -> None:
    assert set(get_args(FormatName)) == {"auto", *FORMATS}
