"""axolotl's `datasets` in graft's words: where the rows are, and how they are laid out."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from graft.training.dialects.rules import Here, Rule, one_or_many

__all__ = ["datasets"]

_FILE = re.compile(r"\.(jsonl?|csv|parquet|txt)$")
_TEXT_TYPES = ("completion", "pretrain")
_LOADERS = ("json", "csv", "parquet", "text")


def datasets(section: str) -> Rule:
    """The rule for `datasets` and its like, which are entries of `section` here."""

    def rule(value: Any) -> Here:
        if not value:
            return Here(equal="it is not set")
        entries, notes = [], []
        for each_one in value if isinstance(value, list) else [value]:
            entry, note = _dataset(each_one)
            entries.append(entry)
            notes += note
        return Here({section: one_or_many(entries)}, " ".join(dict.fromkeys(notes)))

    return rule


def _dataset(theirs: Any) -> tuple[Any, list[str]]:
    """An entry of `datasets` as one of `data.train`, and what is not the same."""
    if not isinstance(theirs, dict):
        return _place(str(theirs)), []
    left = {name: value for name, value in theirs.items() if value not in (None, [], {})}
    path, files = str(left.pop("path", "")), left.pop("data_files", None)
    notes = []
    if files is not None:
        if path in _LOADERS:
            path = files if isinstance(files, str) else files[0]
        if not isinstance(files, str) and len(files) > 1:
            notes.append(f"of data_files only {files[0]} is named; add an entry for each other.")
    entry: dict[str, Any] = {"path": _place(path)}
    for name, ours in (("name", "subset"), ("split", "split"), ("revision", "revision")):
        if name in left:
            entry[ours] = left.pop(name)
    split, bracket, part = str(entry.get("split", "")).partition("[")
    first = re.fullmatch(r":(\d+)\]", part)
    if bracket:
        entry["split"] = split
        if first and int(first[1]):
            entry["max_rows"] = int(first[1])
        else:
            notes.append(f"[{part} of {path}: graft takes the first `max_rows` rows, or all.")
    layout, note = _layout(left)
    entry |= layout
    notes += note
    left.pop("ds_type", None)
    if left:
        notes.append(
            f"{', '.join(sorted(left))} of {path}: graft has no such setting of a data set."
        )
    return entry, notes


def _place(path: str) -> str:
    """A name on the hub says so here; a file is a file."""
    is_file = _FILE.search(path) or path.startswith((".", "/", "~", "hf:", "ms:", "s3:", "gs:"))
    return path if is_file or len(PurePath(path).parts) != 2 else f"hf:{path}"


def _layout(left: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The format and columns that `type` and the fields of an entry mean; takes them out."""
    kind = left.pop("type", None)
    if isinstance(kind, dict):
        return _own_prompt(kind)
    name = str(kind or "").partition(".")[0].partition(":")[0]
    if name == "alpaca":
        note = "alpaca: the columns are the same, the prompt is the base model's chat template."
        return {"format": "alpaca"}, [note]
    if name == "chat_template":
        return _turns(left)
    if name == "sharegpt":
        left.pop("conversation", None)
        return {"format": "sharegpt"}, []
    if name in _TEXT_TYPES:
        field = left.pop("field", "text")
        return {"format": "text", **({} if field == "text" else {"columns": {"text": field}})}, []
    note = f"type {kind!r} is not a format of graft: give `format` and `columns`."
    return {}, [] if kind is None else [note]


def _turns(left: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    names = left.pop("message_property_mappings", None) or {
        "role": left.pop("message_field_role", "role"),
        "content": left.pop("message_field_content", "content"),
    }
    column = left.pop("field_messages", "messages")
    for name in ("chat_template", "roles", "roles_to_train", "train_on_eos", "train_on_eot"):
        if left.get(name) in (["assistant"], "tokenizer_default", "turn", "all"):
            del left[name]
    if (names.get("role"), names.get("content")) == ("from", "value"):
        columns = {} if column == "conversations" else {"columns": {"conversations": column}}
        return {"format": "sharegpt", **columns}, []
    columns = {} if column == "messages" else {"columns": {"messages": column}}
    if (names.get("role", "role"), names.get("content", "content")) == ("role", "content"):
        return {"format": "messages", **columns}, []
    note = "turns must have `role` and `content` (messages) or `from` and `value` (sharegpt)."
    return {"format": "messages", **columns}, [note]


def _own_prompt(kind: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    fields = {"instruction": "field_instruction", "input": "field_input", "output": "field_output"}
    columns = {ours: kind[theirs] for ours, theirs in fields.items() if kind.get(theirs)}
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    notes = []
    if kind.get("format") or kind.get("no_input_format") or kind.get("system_prompt"):
        notes.append(
            "the prompt's own form is not kept: the base model's chat template renders it."
        )
    return {"format": "alpaca", **({"columns": columns} if columns else {})}, notes
