"""What the columns of a row mean: telling the format, and reading rows by it.

A new format is one entry in `FORMATS` and one reader. Turning what is read into tokens is left to
`template` and `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from graft.config import TaskType
from graft.data.sources import Row, Rows
from graft.errors import DataError, did_you_mean

__all__ = [
    "FORMATS",
    "Format",
    "Message",
    "find_format",
    "read_each",
    "read_label",
    "read_messages",
    "read_pair",
    "read_text",
    "rename_columns",
]

Message = dict[str, Any]
Read = TypeVar("Read")

_CHAT = frozenset({TaskType.CAUSAL_LM})
_TARGETED = frozenset({TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM})


@dataclass(frozen=True)
class Format:
    """A layout of rows.

    Attributes:
        columns: The columns it must have.
        optional: The columns it may have.
        tasks: The tasks it can be used for.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    tasks: frozenset[TaskType]


# Where a file has the columns of several formats, the first of them is meant.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), (), _CHAT),
    "sharegpt": Format(("conversations",), ("system",), _CHAT),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history"), _TARGETED),
    "prompt_completion": Format(("prompt", "completion"), (), _TARGETED),
    "text": Format(("text",), (), _CHAT),
    "classification": Format(("text", "label"), ("text_pair",), frozenset({TaskType.SEQ_CLS})),
}

# Other names under which a column is taken without asking.
_ALIASES = {"text_a": "text", "text_b": "text_pair"}

# Names that a column may have in the wild: suggested, never assumed.
_LIKELY = {
    "prompt": ("question", "query", "input", "source", "user", "problem", "instruction"),
    "completion": ("answer", "response", "target", "output", "assistant", "solution"),
    "text": ("sentence", "content", "review", "document", "question"),
    "label": ("labels", "category", "class", "intent", "sentiment"),
}

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_ROLES = ("system", "user", "assistant")


def rename_columns(rows: Rows, columns: dict[str, str]) -> Rows:
    """`rows` with the columns named as graft names them; `columns` is our name -> the file's.

    Raises:
        DataError: A name that graft does not know, or a column that the file does not have.
    """
    there = rows.columns
    known = {name for layout in FORMATS.values() for name in layout.columns + layout.optional}
    known |= _ALIASES.keys()
    taken = {  # our name -> the file's
        name: alias for alias, name in _ALIASES.items() if alias in there and name not in there
    }
    for ours, theirs in columns.items():
        if ours not in known:
            hint = did_you_mean(ours, known)
            raise DataError(f"columns: {ours!r} is not a column that graft knows.{hint}")
        if theirs not in there:
            hint = did_you_mean(theirs, there)
            raise DataError(f"{rows.name} has no column {theirs!r} (given for {ours}).{hint}")
        taken[_ALIASES.get(ours, ours)] = theirs
    if not taken:
        return rows
    moved = set(taken.values())
    items = [
        {name: value for name, value in row.items() if name not in moved}
        | {ours: row.get(theirs) for ours, theirs in taken.items()}
        for row in rows.items
    ]
    return Rows(items, rows.files)


def find_format(rows: Rows, given: str, task_type: TaskType) -> str:
    """The format of `rows`: `given`, or for `"auto"` the first that the columns fit.

    Raises:
        DataError: `given` does not fit the task or the columns, or no format does.
    """
    fitting = {name: f for name, f in FORMATS.items() if task_type in f.tasks}
    if not fitting:
        tasks = ", ".join(sorted({task.value for f in FORMATS.values() for task in f.tasks}))
        raise DataError(f"No data format is known for {task_type.value}; expected one of {tasks}.")
    there = rows.columns
    if given == "auto":
        for name, candidate in fitting.items():
            if set(candidate.columns) <= set(there):
                return name
        expected = "; ".join(f"{' + '.join(f.columns)} ({n})" for n, f in fitting.items())
        raise DataError(
            f"{rows.name} has the columns {', '.join(there)}; {task_type.value} needs one of: "
            f"{expected}.{_suggestion(there, fitting)}"
        )
    if given not in fitting:
        raise DataError(
            f"format: {given} is not for {task_type.value}; expected one of {', '.join(fitting)}."
        )
    for column in fitting[given].columns:
        if column not in there:
            suggestion = _suggestion(there, {given: fitting[given]})
            hint = suggestion or did_you_mean(column, there)
            raise DataError(f"{rows.name} has no column {column!r} (format {given}).{hint}")
    return given


def _suggestion(there: list[str], formats: dict[str, Format]) -> str:
    """How to name the columns of the first format that `there` could be, or nothing."""
    for candidate in formats.values():
        found = {}
        for column in candidate.columns:
            names = (column, *_LIKELY.get(column, ()))
            found[column] = next((n for n in names if n in there), None)
        if all(found.values()):
            mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in found.items())
            return f" If that is what they are, set columns: {{{mapping}}}."
    return ""


def read_each(rows: Rows, read: Callable[[Row], Read]) -> list[Read]:
    """`read` of every row.

    Raises:
        DataError: What is wrong with the first row that `read` refuses, and which others it
            refuses too, so that a file is mended in one go.
    """
    out: list[Read] = []
    faults: list[tuple[int, str]] = []
    for index, row in enumerate(rows.items):
        try:
            out.append(read(row))
        except DataError as error:
            faults.append((index, str(error)))
    if faults:
        (first, message), *others = faults
        more = ", ".join(rows.where(index).partition(" of ")[0] for index, _ in others[:5])
        if others:
            more = f" {len(others)} more cannot be used: {more}{', ...' if others[5:] else '.'}"
        raise DataError(f"{rows.where(first)}: {message}{more}")
    return out


def read_messages(row: Row, format_name: str) -> list[Message]:
    """The conversation in `row`: dicts with `role` (system, user, assistant) and `content`.

    Raises:
        DataError: An unknown role, a value that is not text, or no response to learn.
    """
    messages = _MESSAGE_READERS[format_name](row)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    if not answers:
        raise DataError("no assistant turn: add the response, or remove the row.")
    if not all(answer.strip() for answer in answers):
        raise DataError("an assistant turn is empty: fill it in, or remove the row.")
    if next(m["role"] for m in messages if m["role"] != "system") == "assistant":
        raise DataError("begins with an assistant turn: put a user turn before it.")
    return messages


def read_pair(row: Row, format_name: str) -> tuple[str, str]:
    """Source and target of `row`; turns before the response are joined by newlines.

    Raises:
        DataError: A value that is not text, or no target to learn.
    """
    if format_name == "prompt_completion":
        target = _text(row, "completion")
        _require(target, "completion")
        return _text(row, "prompt"), target
    *before, last = read_messages(row, format_name)
    return "\n".join(message["content"] for message in before), last["content"]


def read_text(row: Row) -> str:
    """The text of `row`; may be empty."""
    return _text(row, "text")


def read_label(row: Row) -> tuple[str, str | None, str]:
    """Text, second text (or None) and label of `row`.

    Raises:
        DataError: No text, no label, or a label that is neither text nor a whole number.
    """
    text, label = _text(row, "text"), row.get("label")
    _require(text, "text")
    if label is None or label == "":
        raise DataError("no label: add it, or remove the row.")
    if not isinstance(label, str | int):
        raise DataError(f"the label is {label!r}: expected text or a whole number.")
    pair = _text(row, "text_pair") if row.get("text_pair") is not None else None
    return text, pair, str(label)


def _alpaca(row: Row) -> list[Message]:
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError("history: expected a list of [user, assistant] pairs.")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError("history: expected a list of [user, assistant] pairs.")
        messages += _exchange(*(_as_text(said, "history") for said in pair))
    output = _text(row, "output")
    _require(output, "output")
    asked = [_text(row, "instruction"), _text(row, "input")]
    return messages + _exchange("\n".join(part for part in asked if part), output)


def _prompt_completion(row: Row) -> list[Message]:
    return _exchange(*read_pair(row, "prompt_completion"))


def _system(row: Row) -> list[Message]:
    content = _text(row, "system")
    return [{"role": "system", "content": content}] if content else []


def _exchange(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _messages(row: Row) -> list[Message]:
    # Other keys of a message (reasoning_content, name, ...) are the chat template's business;
    # one that is null is as good as absent, and templates ask whether it is there.
    return [
        {
            **{key: value for key, value in turn.items() if value is not None},
            "role": _role(turn, "role", {role: role for role in _ROLES}),
            "content": _text(turn, "content"),
        }
        for turn in _turns(row, "messages")
    ]


def _sharegpt(row: Row) -> list[Message]:
    return _system(row) + [
        {"role": _role(turn, "from", _SHAREGPT_ROLES), "content": _text(turn, "value")}
        for turn in _turns(row, "conversations")
    ]


_MESSAGE_READERS: dict[str, Callable[[Row], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


def _turns(row: Row, column: str) -> list[Row]:
    turns = row.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{column}: expected a list of turns, each an object.")
    return turns


def _role(turn: Row, key: str, roles: dict[str, str]) -> str:
    role = turn.get(key)
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{key}: {role!r} is not a role.{did_you_mean(str(role), roles)}")
    return roles[role]


def _require(text: str, column: str) -> None:
    if not text.strip():
        raise DataError(f"{column} is empty: fill it in, or remove the row.")


def _text(row: Row, column: str) -> str:
    return _as_text(row.get(column), column)


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{column}: expected text, not {type(value).__name__}.")
