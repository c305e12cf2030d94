"""The layouts of rows: which columns each has, telling them apart, renaming columns to fit.

A new format is one entry in `FORMATS` and one reader beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from graft.config import TaskType
from graft.data.rows import Row, Rows
from graft.errors import DataError, did_you_mean

__all__ = ["FORMATS", "Format", "find_format", "read_batches", "rename_columns", "suggest_columns"]

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
        aliases: Other names -> its columns', taken without asking where the rest of it is there.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    tasks: frozenset[TaskType]
    aliases: dict[str, str] = field(default_factory=dict)

    def taken(self, there: list[str]) -> dict[str, str]:
        """Our name -> the file's for the aliases in `there`; nothing where it does not fit."""
        found: dict[str, str] = {}
        for alias, name in self.aliases.items():  # of two for one column, the first
            if alias in there and name not in there:
                found.setdefault(name, alias)
        return found if set(self.columns) <= {*there, *found} else {}


# Where a file has the columns of several formats, the first of them is meant.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("system", "tools"), _CHAT),
    "sharegpt": Format(("conversations",), ("system", "tools"), _CHAT),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history", "tools"), _TARGETED),
    "prompt_completion": Format(("prompt", "completion"), (), _TARGETED),
    "seq2seq": Format(("input", "target"), (), _TARGETED),
    "text": Format(("text",), (), _CHAT),
    "classification": Format(
        ("text", "label"),
        ("text_pair",),
        frozenset({TaskType.SEQ_CLS}),
        {"text_a": "text", "text_b": "text_pair"},
    ),
    "token_classification": Format(
        ("tokens", "tags"),
        (),
        frozenset({TaskType.TOKEN_CLS}),
        {"ner_tags": "tags", "labels": "tags"},
    ),
    "question_answering": Format(
        ("context", "question"),
        ("answers", "answer", "answer_start", "id", "is_impossible"),
        frozenset({TaskType.QUESTION_ANS}),
    ),
}

# How LLaMA-Factory calls the columns of the Alpaca format; `prompt` alone means our own.
_LLAMA_FACTORY = {"prompt": "instruction", "query": "input", "response": "output"}

# Names that a column may have in the wild: suggested, never assumed.
_LIKELY = {
    "messages": ("conversation", "conversations", "dialogue", "chat", "turns"),
    "prompt": ("question", "query", "input", "source", "user", "problem", "instruction"),
    "completion": ("answer", "response", "target", "output", "assistant", "solution"),
    "input": ("source", "document", "article", "mr"),
    "target": ("summary", "output", "reference", "ref"),
    "text": ("sentence", "content", "review", "document", "question"),
    "label": ("labels", "category", "class", "intent", "sentiment"),
    "tokens": ("words", "sentence"),
    "tags": ("ner", "pos_tags", "chunk_tags", "label"),
    "context": ("passage", "paragraph", "document"),
    "question": ("query",),
}


def rename_columns(rows: Rows, columns: dict[str, str]) -> Rows:
    """`rows` with the columns named as graft names them; `columns` is our name -> the file's.

    Raises:
        DataError: A name that graft does not know, or a column that the file does not have.
    """
    there = rows.columns
    given = _given(rows, columns, there)
    named = [*(name for name in there if name not in given.values()), *given]
    taken = dict(given)
    for layout in FORMATS.values():
        taken |= {ours: theirs for ours, theirs in layout.taken(named).items() if ours not in taken}
    if not taken:
        return rows
    moved = set(taken.values())
    items = [
        {name: value for name, value in row.items() if name not in moved}
        | {ours: row.get(theirs) for ours, theirs in taken.items()}
        for row in rows.items
    ]
    return Rows(items, rows.files)


def _given(rows: Rows, columns: dict[str, str], there: list[str]) -> dict[str, str]:
    """`columns`, by graft's own names."""
    aliases = {alias: name for f in FORMATS.values() for alias, name in f.aliases.items()}
    if "query" in columns or "response" in columns:
        aliases |= _LLAMA_FACTORY
    own = [name for layout in FORMATS.values() for name in layout.columns + layout.optional]
    out: dict[str, str] = {}
    for ours, theirs in columns.items():
        if ours not in own and ours not in aliases:
            hint = did_you_mean(ours, [*own, *aliases, *_LLAMA_FACTORY])
            raise DataError(f"columns: {ours!r} is not a column that graft knows.{hint}")
        if theirs not in there:
            hint = did_you_mean(theirs, there)
            raise DataError(f"{rows.name} has no column {theirs!r} (given for {ours}).{hint}")
        out[aliases.get(ours, ours)] = theirs
    return out


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
            f"{expected}.{_suggestion(there, fitting) or _other_task(there, fitting)}"
        )
    if given not in fitting:
        raise DataError(
            f"format: {given} is not for {task_type.value}; expected one of {', '.join(fitting)}."
        )
    for column in fitting[given].columns:
        if column not in there:
            hint = (
                _other_format(there, fitting)
                or _suggestion(there, {given: fitting[given]})
                or did_you_mean(column, there)
            )
            raise DataError(f"{rows.name} has no column {column!r} (format {given}).{hint}")
    return given


def suggest_columns(rows: Rows, task_type: TaskType) -> dict[str, str] | None:
    """Our name -> the file's for columns that may be those of a format; None where none may.

    Only a guess: someone has to see that it is right.
    """
    return _likely(rows.columns, {n: f for n, f in FORMATS.items() if task_type in f.tasks})


def _likely(there: list[str], formats: dict[str, Format]) -> dict[str, str] | None:
    """How to name the columns of the first format that `there` could be."""
    spelled = {name.lower(): name for name in reversed(there)}
    spelled |= {name: name for name in there}
    for candidate in formats.values():
        found = {}
        for column in candidate.columns:
            names = (column, *_LIKELY.get(column, ()))
            found[column] = next((spelled[n] for n in names if n in spelled), None)
        named = {ours: theirs for ours, theirs in found.items() if theirs is not None}
        if len(named) == len(found):
            return named
    return None


def _suggestion(there: list[str], formats: dict[str, Format]) -> str:
    found = _likely(there, formats)
    if found is None:
        return ""
    mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in found.items())
    return f" If that is what they are, set columns: {{{mapping}}}."


def _other_format(there: list[str], fitting: dict[str, Format]) -> str:
    """Which format the columns are of, where it is another one."""
    for name, layout in fitting.items():
        if set(layout.columns) <= set(there):
            return f" Its columns are those of {name}: set format: {name} beside its path."
    return ""


def _other_task(there: list[str], fitting: dict[str, Format]) -> str:
    """Which task the columns are for, where it is another one."""
    telling = sorted(FORMATS.items(), key=lambda item: -len(item[1].columns))
    for name, layout in telling:
        if name not in fitting and set(layout.columns) <= set(there):
            tasks = " or ".join(sorted(task.value for task in layout.tasks))
            return f" They are those of {name}, which is for {tasks}."
    return ""


def read_batches(
    rows: Rows, read: Callable[[Row], Read], size: int
) -> Iterator[tuple[int, list[Read]]]:
    """`read` of every row: the index of the first of each `size` rows, and what was read of these.

    Raises:
        DataError: What is wrong with the first row that `read` refuses, and which others it
            refuses too, so that a file is mended in one go.
    """
    faults: list[tuple[int, str]] = []
    for start in range(0, len(rows.items), size):
        out: list[Read] = []
        for index, row in enumerate(rows.items[start : start + size], start):
            try:
                out.append(read(row))
            except DataError as error:
                faults.append((index, str(error)))
        if not faults:
            yield start, out
    if faults:
        (first, message), *others = faults
        more = ", ".join(rows.where(index).partition(" of ")[0] for index, _ in others[:5])
        if others:
            more = f" {len(others)} more cannot be used: {more}{', ...' if others[5:] else '.'}"
        raise DataError(f"{rows.where(first)}: {message}{more}")
