"""Rows -> turns of a conversation, or a source and its target.

Turns come out as chat templates know them: dicts with `role` (system, user, assistant, tool) and
`content`; calls of tools as `tool_calls` of an assistant turn; `loss: False` on an assistant turn
that is not to be learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from graft.data.formats.cells import as_text, kind_of, require_text, text_of
from graft.data.rows import Row
from graft.errors import DataError, did_you_mean

__all__ = ["Message", "read_messages", "read_pair", "read_text", "read_tools"]

Message = dict[str, Any]

# A role of the file -> the role in the template. A "call" is an assistant turn that calls tools.
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "tool_call": "call",  # ms-swift's names
    "tool_response": "tool",
}
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "call",
    "observation": "tool",
    **_ROLES,
}


def read_messages(row: Row, format_name: str) -> list[Message]:
    """The conversation in `row`: dicts with `role`, `content` and what the template may ask for.

    Raises:
        DataError: An unknown role, a value that is not text, or no response to learn.
    """
    messages = _READERS[format_name](row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise DataError("no assistant turn: add the response, or remove the row.")
    if not all(answer["content"].strip() or "tool_calls" in answer for answer in answers):
        raise DataError("an assistant turn is empty: fill it in, or remove the row.")
    if next(m["role"] for m in messages if m["role"] != "system") == "assistant":
        raise DataError("begins with an assistant turn: put a user turn before it.")
    if not any(answer.get("loss", True) for answer in answers):
        raise DataError("no assistant turn is to be learned: each has loss: false.")
    return messages


def read_tools(row: Row) -> list[dict[str, Any]] | None:
    """The tools that the conversation in `row` may call, as chat templates want them.

    Returns:
        Objects `{"type": "function", "function": {"name": ..., ...}}`; None where there are none.

    Raises:
        DataError: `tools` is neither a list of objects with a name nor the JSON text of one.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, "tools")
    if not tools:
        return None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise DataError(f"tools: expected a list of tools, not {kind_of(tools)}.")
    return [_tool(tool) for tool in tools]


def read_pair(row: Row, format_name: str) -> tuple[str, str]:
    """Source and target of `row`; turns before the response are joined by newlines.

    Raises:
        DataError: A value that is not text, or no target to learn.
    """
    if format_name in _PAIRS:
        source, target = _PAIRS[format_name]
        text = text_of(row, target)
        require_text(text, target)
        return text_of(row, source), text
    *before, last = read_messages(row, format_name)
    return "\n".join(message["content"] for message in before), last["content"]


def read_text(row: Row) -> str:
    """The text of `row`; may be empty."""
    return text_of(row, "text")


_PAIRS = {"prompt_completion": ("prompt", "completion"), "seq2seq": ("input", "target")}


def _pair(format_name: str) -> Callable[[Row], list[Message]]:
    return lambda row: _exchange(*read_pair(row, format_name))


def _alpaca(row: Row) -> list[Message]:
    messages = _system(row)
    history = row.get("history") or []
    if isinstance(history, str):  # a cell of a csv file
        history = _json(history, "history")
    if not isinstance(history, list):
        raise DataError("history: expected a list of [user, assistant] pairs.")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history, entry {number}: expected a [user, assistant] pair.")
        messages += _exchange(*(as_text(said, "history") for said in pair))
    output = text_of(row, "output")
    require_text(output, "output")
    asked = [text_of(row, "instruction"), text_of(row, "input")]
    return messages + _exchange("\n".join(part for part in asked if part), output)


def _messages(row: Row) -> list[Message]:
    return _conversation(row, "messages", "role", "content", _ROLES)


def _sharegpt(row: Row) -> list[Message]:
    return _conversation(row, "conversations", "from", "value", _SHAREGPT_ROLES)


def _conversation(
    row: Row, column: str, role_key: str, key: str, roles: dict[str, str]
) -> list[Message]:
    turns = [
        _turn(turn, role_key, key, roles, f"turn {number}")
        for number, turn in enumerate(_turns(row, column), 1)
    ]
    # A system turn of the conversation goes before the column, which is the same for many rows.
    own = bool(turns) and turns[0]["role"] == "system"
    return turns if own else _system(row) + turns


_READERS: dict[str, Callable[[Row], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _pair("prompt_completion"),
    "seq2seq": _pair("seq2seq"),
}


def _system(row: Row) -> list[Message]:
    content = text_of(row, "system")
    return [{"role": "system", "content": content}] if content else []


def _exchange(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _turns(row: Row, column: str) -> list[Row]:
    turns = row.get(column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a cell of a csv file
        turns = _json(turns, column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{column}: expected a list of turns, each an object.")
    return turns


def _turn(turn: Row, role_key: str, key: str, roles: dict[str, str], where: str) -> Message:
    given = turn.get(role_key)
    if not isinstance(given, str) or given not in roles:
        hint = did_you_mean(str(given), roles)
        raise DataError(f"{where}: {role_key} {given!r} is not a role.{hint}")
    role = roles[given]
    # Other keys (reasoning_content, name, ...) are the chat template's business; one that is null
    # is as good as absent, and templates ask whether it is there.
    own = (role_key, key, "loss", "weight")
    message = {name: value for name, value in turn.items() if name not in own and value is not None}
    content = _content(turn.get(key), f"{where}: {key}")
    if role == "call":
        calls = _json(content, f"{where}: {key}")
        message |= {"role": "assistant", "content": "", "tool_calls": _calls(calls, where)}
    else:
        message |= {"role": role, "content": content}
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        elif role == "assistant":
            message["tool_calls"] = _calls(message["tool_calls"], where)
        else:
            raise DataError(f"{where}: tool_calls belong to an assistant turn, not to {role}.")
    if not _is_learned(turn, message["role"], where):
        message["loss"] = False
    return message


def _content(value: Any, where: str) -> str:
    """Text, or OpenAI's list of parts where all are text."""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        return as_text(value, where)
    for part in value:
        if part.get("type") != "text":
            raise DataError(
                f"{where}: a part is of type {part.get('type')!r}: only text is learned."
            )
    return "".join(as_text(part.get("text"), where) for part in value)


def _is_learned(turn: Row, role: str, where: str) -> bool:
    """What `loss` (or `weight`, which is OpenAI's name for it) says of an assistant turn."""
    for key in ("loss", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise DataError(f"{where}: {key} is {value!r}: expected true or false (1 or 0).")
        if role == "assistant":
            return bool(value)
        if value:
            raise DataError(f"{where}: {key}: only assistant turns are learned, this is {role}.")
    return True


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools, each `{"type": "function", "function": {"name", "arguments": {...}}}`.

    Templates write arguments as JSON themselves, so text would be quoted twice.
    """
    calls = calls if isinstance(calls, list) else [calls]
    out = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a call of a tool needs a name and arguments.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments or "{}", f"{where}: arguments of {function['name']}")
        if not isinstance(arguments, dict):
            raise DataError(
                f"{where}: arguments of {function['name']}: expected an object, "
                f"not {kind_of(arguments)}."
            )
        kept = {"id": call["id"]} if call.get("id") is not None else {}
        named = {"name": function["name"], "arguments": arguments}
        out.append({**kept, "type": "function", "function": named})
    if not out:
        raise DataError(f"{where}: no tool is called: write the answer as an assistant turn.")
    return out


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, str):  # OpenAI's list, with each tool as JSON text
        tool = _json(tool, "tools")
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError("tools: expected objects with a name, a description and parameters.")
    return tool if "function" in tool else {"type": "function", "function": tool}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} (character {error.pos + 1}).") from None
