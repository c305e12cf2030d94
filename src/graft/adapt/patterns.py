"""Regular expressions for paths of modules: read, or refused; and what to change where none hits.

A pattern must match a whole path, as in PEFT. Which paths count is for the caller to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from graft.errors import TargetError, did_you_mean

__all__ = ["near_miss", "read_pattern", "unknown_names"]

_PLACES = {"in front": ".*{}", "behind": "{}.*", "in front and behind": ".*{}.*"}


def read_pattern(field: str, text: str) -> re.Pattern[str]:
    """The regular expression in the setting `field`.

    Raises:
        TargetError: `text` is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise TargetError(f"{field}={text!r} is not a regular expression: {error}.") from None


def near_miss(pattern: re.Pattern[str], paths: Sequence[str]) -> str:
    """The end of a sentence on `pattern`, which matches none of `paths` as a whole.

    It goes on after "it": what a pattern must do, and what to change in this one.
    """
    core = pattern.pattern.removeprefix("^").removesuffix("$")
    inside = [path for path in paths if re.search(core, path)] if _is_pattern(core) else []
    for place, way in _PLACES.items() if inside else ():
        wider = way.format(f"({core})" if "|" in core else core)
        count = sum(re.fullmatch(wider, path) is not None for path in paths)
        if count:
            return (
                f"must match a whole path, such as {inside[0]!r}; it matches a part only. Put `.*` "
                f"{place}: {wider!r} matches {count} {'path' if count == 1 else 'paths'}."
            )
    words = _words(core)
    example = max(paths, key=lambda path: _likeness(path, words), default="(none)")
    unknown = "".join(f" {sentence}" for sentence in unknown_names(pattern, paths)[:1])
    return f"must match a whole path, such as {example!r}; it matches none.{unknown}"


def unknown_names(pattern: re.Pattern[str], paths: Sequence[str]) -> list[str]:
    """A sentence on each name in `pattern` that is in none of `paths`."""
    leaves = {path.rpartition(".")[2] for path in paths}
    return [
        f"Nothing is called {word!r}.{did_you_mean(word, leaves)}"
        for word in _words(pattern.pattern)
        if not any(word in path for path in paths)
    ]


def _is_pattern(text: str) -> bool:
    try:  # flags must stand in front; what is cut off an end may have closed something
        return all(re.compile(way.format(text)) for way in _PLACES.values())
    except re.error:
        return False


def _likeness(path: str, words: Sequence[str]) -> tuple[int, bool]:
    """How many of `words` are in `path`, then whether it lies in a layer."""
    return sum(word in path for word in words), re.search(r"\.\d+\.", path) is not None


def _words(pattern: str) -> list[str]:
    """The names in a regular expression."""
    return re.findall(r"[A-Za-z_]\w+", re.sub(r"\\[A-Za-z]", " ", pattern))
