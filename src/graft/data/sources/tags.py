"""Turns in a file's own words -> in those that graft reads: LLaMA-Factory's `tags`."""

from __future__ import annotations

from typing import Any

from graft.data.rows import Row, Rows

__all__ = ["TAGS", "untagged"]

# What a tag stands for in the ShareGPT format, and in the messages format.
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OF_MESSAGES = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "tool_call",
    "system_tag": "system",
}
_KEYS = ("role_tag", "content_tag")


def untagged(rows: Rows, tags: dict[str, str], format_name: str) -> Rows:
    """`rows` with the keys and roles of their turns as the format has them.

    What no tag names stays as it is, and is for the format's reader to judge.
    """
    column, own = ("conversations", TAGS)
    if format_name == "messages":
        column, own = ("messages", _OF_MESSAGES)
    theirs = TAGS | tags
    keys = {theirs[tag]: own[tag] for tag in _KEYS}
    roles = {theirs[tag]: own[tag] for tag in own if tag not in _KEYS}

    def turn_of(turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        named = {keys.get(key, key): value for key, value in turn.items()}
        role = named.get(own["role_tag"])
        if isinstance(role, str):
            named[own["role_tag"]] = roles.get(role, role)
        return named

    def row_of(row: Row) -> Row:
        turns = row.get(column)
        return row | {column: [*map(turn_of, turns)]} if isinstance(turns, list) else row

    return Rows([row_of(row) for row in rows.items], rows.files)
