import json
from typing import Any

import pytest

from graft.data.formats import read_messages, read_pair, read_tools
from graft.data.rows import Row
from graft.errors import DataError


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


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


def test_the_system_column() -> None:
    said = [turn("user", "a"), turn("assistant", "b")]
    shared = [{"from": m["role"], "value": m["content"]} for m in said]
    own = {"from": "system", "value": "own"}
    expected = [turn("system", "s"), *said]
    assert read_messages({"messages": said, "system": "s"}, "messages") == expected
    assert read_messages({"conversations": shared, "system": "s"}, "sharegpt") == expected
    assert read_messages({"conversations": shared, "system": ""}, "sharegpt") == said
    both = {"conversations": [own, *shared], "system": "s"}
    assert read_messages(both, "sharegpt") == [turn("system", "own"), *said]


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


WEATHER = {"name": "weather", "description": "?", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": {"city": "巴黎"}}


def called(*functions: dict[str, Any], **more: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def test_tools_of_sharegpt_are_calls_and_answers() -> None:
    said = [
        ("human", "Cold?"),
        ("function_call", json.dumps(CALL, ensure_ascii=False)),
        ("observation", '{"degrees": 3}'),
        ("gpt", "Yes."),
        ("human", "And there?"),
        ("function_call", json.dumps([CALL, {"name": "sky", "arguments": "{}"}])),
    ]
    row = {"system": "s", "conversations": [{"from": who, "value": what} for who, what in said]}
    assert read_messages(row, "sharegpt") == [
        turn("system", "s"),
        turn("user", "Cold?"),
        called(CALL),
        turn("tool", '{"degrees": 3}'),
        turn("assistant", "Yes."),
        turn("user", "And there?"),
        called(CALL, {"name": "sky", "arguments": {}}),
    ]


@pytest.mark.parametrize(
    "calls",
    [
        [{"id": "c1", "type": "function", "function": CALL}],
        [{"id": "c1", "type": "function", "function": {**CALL, "arguments": '{"city": "巴黎"}'}}],
        [{"id": "c1", **CALL}],
    ],
)
def test_calls_in_messages_come_as_templates_want_them(calls: list[Row]) -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": calls}
    answer = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": None}
    row = {"messages": [turn("user", "a"), asked, answer, turn("assistant", "b")]}
    call = {"id": "c1", "type": "function", "function": CALL}
    assert read_messages(row, "messages") == [
        turn("user", "a"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        turn("assistant", "b"),
    ]


def test_ms_swifts_roles_of_tools() -> None:
    said = [turn("user", "a"), turn("tool_call", json.dumps(CALL)), turn("tool_response", "3")]
    read = read_messages({"messages": [*said, turn("assistant", "b")]}, "messages")
    assert read == [turn("user", "a"), called(CALL), turn("tool", "3"), turn("assistant", "b")]


@pytest.mark.parametrize("given", [WEATHER, {"type": "function", "function": WEATHER}])
def test_tools_are_wrapped(given: Row) -> None:
    expected = [{"type": "function", "function": WEATHER}]
    for tools in ([given], given, json.dumps([given]), [json.dumps(given)]):
        assert read_tools({"tools": tools}) == expected
    for nothing in ({}, {"tools": None}, {"tools": ""}, {"tools": []}, {"tools": "[]"}):
        assert read_tools(nothing) is None


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("weather", "tools: not JSON: Expecting value (character 1)."),
        (3, "tools: expected a list of tools, not a number."),
        ([{"description": "?"}], "tools: expected objects with a name, a description and param"),
        ([3], "tools: expected objects with a name, a description and parameters."),
    ],
)
def test_tools_that_are_none(tools: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_tools({"tools": tools})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {}),
        ({"loss": True}, {}),
        ({"loss": None}, {}),
        ({"loss": 1.0}, {}),
        ({"weight": 1}, {}),
        ({"loss": False}, {"loss": False}),
        ({"loss": 0}, {"loss": False}),
        ({"weight": 0}, {"loss": False}),
    ],
)
def test_a_turn_may_be_left_unlearned(given: Row, kept: Row) -> None:
    messages = [turn("user", "a"), turn("assistant", "b") | given]
    messages += [turn("user", "c") | {"loss": False}, turn("assistant", "d")]
    read = read_messages({"messages": messages}, "messages")
    answers = [turn("assistant", "b") | kept, turn("assistant", "d")]
    assert read == [turn("user", "a"), answers[0], turn("user", "c"), answers[1]]
    said = [
        {"from": m["role"], "value": m["content"], **{k: m[k] for k in m if k in given}}
        for m in messages
    ]
    assert read_messages({"conversations": said}, "sharegpt") == read


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([turn("assistant", "b") | {"loss": False}], "no assistant turn is to be learned: each ha"),
        ([turn("assistant", "b") | {"weight": 0.5}], "turn 2: weight is 0.5: expected true or fa"),
        ([turn("assistant", "b") | {"loss": "no"}], "turn 2: loss is 'no': expected true or fals"),
        (
            [turn("assistant", "b"), turn("user", "c") | {"loss": True}, turn("assistant", "d")],
            "turn 3: loss: only assistant turns are learned, this is user.",
        ),
        ([called({"arguments": {}})], "turn 2: a call of a tool needs a name and arguments."),
        ([called({"name": "f", "arguments": "{"})], "turn 2: arguments of f: not JSON: Expecting"),
        ([called({"name": "f", "arguments": [1]})], "of f: expected an object, not a list."),
        ([called(CALL, role="user")], "turn 2: tool_calls belong to an assistant turn, not to us"),
        ([turn("tool_call", "[]")], "turn 2: no tool is called: write the answer as an assistant"),
    ],
)
def test_turns_that_cannot_be_learned(turns: list[Row], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_messages({"messages": [turn("user", "a"), *turns]}, "messages")
    assert message in str(error.value)


def test_parts_that_are_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, turn("assistant", "c")]}
    assert read_messages(row, "messages") == [turn("user", "a b"), turn("assistant", "c")]


def test_lists_in_cells_of_csv() -> None:
    said = [turn("user", "a"), turn("assistant", "b")]
    assert read_messages({"messages": json.dumps(said)}, "messages") == said
    row = {"instruction": "a", "output": "b", "history": '[["c", "d"]]'}
    assert read_messages(row, "alpaca") == [turn("user", "c"), turn("assistant", "d"), *said]
    assert read_messages({**row, "history": ""}, "alpaca") == said


def test_a_source_and_its_target() -> None:
    row = {"input": "a", "target": "b"}
    assert read_pair(row, "seq2seq") == ("a", "b")
    assert read_messages(row, "seq2seq") == [turn("user", "a"), turn("assistant", "b")]
    with pytest.raises(DataError, match="target is empty"):
        read_pair({"input": "a", "target": None}, "seq2seq")
