"""Findings in the text of the files, before it becomes tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from graft.data.check.report import MANY, SHOWN, Finding, place_of, severity
from graft.data.formats import FORMATS, read_messages, read_pair, read_text
from graft.data.preview.pieces import special_ids
from graft.data.rows import Row, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Texts", "is_broken"]

_CHAT = ("messages", "sharegpt", "alpaca")
_PAIRS = ("prompt_completion", "seq2seq")
_PLACEHOLDER = re.compile(r"\{\{ ?\w+ ?\}\}")
# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter, then those of its followers.
_FOLLOWERS = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MISREAD = re.compile(f"[\u00c2-\u00df][{_FOLLOWERS}]|[\u00e0-\u00ef][{_FOLLOWERS}]{{2}}"
                      f"|[\u00f0-\u00f4][{_FOLLOWERS}]{{3}}")  # fmt: skip
# What is left where text in GBK was read as UTF-8, or the reverse.
_REMAINS = ("\ufffd", "锟斤拷", "烫烫烫", "ï»¿")


class Texts:
    """Looks at the rows of one source after the other, and keeps what it found.

    Args:
        tokenizer: Whose special tokens must not stand in a text.
        ends: Nor must these, which may end a turn and need not be special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[str]) -> None:
        special = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
        names = {re.escape(str(name)) for name in (*special, *ends)}
        names = sorted(names, key=len, reverse=True)
        self._special = re.compile("|".join(names)) if names else None
        self._found: dict[str, list[str]] = {}
        self._counts = {"special": 0, "written": 0, "broken": 0, "empty": 0, "placeholder": 0}
        self._names: dict[str, dict[str, None]] = {"special": {}, "placeholder": {}}
        self._rows = 0

    def look(self, rows: Rows, format_name: str, in_turns: bool) -> None:
        """Look at each row; `in_turns`: a chat template puts its own tokens around the texts."""
        self._rows += len(rows.items)
        layout = FORMATS[format_name]
        columns = layout.columns + layout.optional
        for index, row in enumerate(rows.items):
            texts = [text for name in columns for text in _strings(row.get(name))]
            for kind, found in (
                ("special", self._holds("special", self._special, texts)),
                ("placeholder", self._holds("placeholder", _PLACEHOLDER, texts)),
                ("broken", any(map(is_broken, texts))),
                ("empty", _is_empty(row, format_name)),
            ):
                if found:
                    self._note(kind, rows, index)
                    # Texts that are taken as they stand were rendered beforehand: it is meant.
                    self._counts["written"] += kind == "special" and not in_turns

    def findings(self) -> Iterator[Finding]:
        """What was found in all sources."""
        if self._counts["special"]:
            meant = self._counts["written"] == self._counts["special"]
            yield self._finding(
                "special-tokens-in-text",
                None if meant else MANY,
                f"the text holds {self._listed('special')}, which the tokenizer takes as special",
                "fine where the text is meant to hold them; otherwise it can end a turn or begin "
                "one: remove them",
                "special",
            )
        if self._counts["placeholder"]:
            yield self._finding(
                "placeholders",
                None,
                f"the text holds {self._listed('placeholder')}: nobody has filled it in",
                "put in what is meant, unless the model shall learn to write it",
                "placeholder",
            )
        if self._counts["broken"]:
            yield self._finding(
                "broken-text",
                MANY,
                "characters that were lost or misread, such as \ufffd or Ã©",
                "make the file again from its origin, reading and writing it as UTF-8",
                "broken",
            )
        if self._counts["empty"]:
            yield self._finding(
                "empty-rows",
                MANY,
                "the prompt, or the text, is empty",
                "fill it in, or remove the rows",
                "empty",
            )

    def _finding(self, name: str, limit: float | None, what: str, cure: str, kind: str) -> Finding:
        count = self._counts[kind]
        share = count / self._rows
        where = tuple(self._found[kind])
        return Finding(name, severity(share, limit), count, share, what, cure, where)

    def _note(self, kind: str, rows: Rows, index: int) -> None:
        self._counts[kind] += 1
        places = self._found.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(place_of(rows, index))

    def _holds(self, kind: str, pattern: re.Pattern[str] | None, texts: list[str]) -> bool:
        found = [hit for text in texts for hit in pattern.findall(text)] if pattern else []
        self._names[kind] |= dict.fromkeys(found)
        return bool(found)

    def _listed(self, kind: str) -> str:
        names = list(self._names[kind])
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _strings(value: Any) -> Iterator[str]:
    """Every text in `value`, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def is_broken(text: str) -> bool:
    """Whether `text` holds characters that were lost, or read in another encoding than written."""
    if text.isascii():
        return False
    if any(sign in text for sign in _REMAINS):
        return True
    return any(_is_misread(hit.group()) for hit in _MISREAD.finditer(text))


def _is_misread(text: str) -> bool:
    """Whether `text` is one character of UTF-8, read as Windows-1252."""
    # What 1252 leaves open, readers take as Latin-1.
    content = b"".join(
        char.encode("latin-1") if char <= "\xff" else char.encode("cp1252") for char in text
    )
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_empty(row: Row, format_name: str) -> bool:
    """Whether nothing is asked in `row`; its answer is required by those that read it."""
    if format_name in _CHAT:
        turns = read_messages(row, format_name)
        return not all(turn["content"].strip() for turn in turns if turn["role"] == "user")
    if format_name in _PAIRS:
        return not read_pair(row, format_name)[0].strip()
    return format_name == "text" and not read_text(row).strip()
