"""The kinds of rules by which a setting of another tool is told in graft's words.

A rule takes the value that the other tool was given. `NAME` in a path stands for the adapter's
name, which only the run file knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ADAPTER",
    "Here",
    "Rule",
    "as_list",
    "each",
    "equal",
    "fraction",
    "lost",
    "one_or_many",
    "packed",
    "renamed",
]

ADAPTER = "adapters.NAME"
_OFF = (None, False, 0, "", "none", "None")


@dataclass(frozen=True)
class Here:
    """What a setting of another tool comes to in graft.

    Attributes:
        settings: Dotted path -> value.
        lost: What is not carried over, or is not the same here, and what to do; empty where
            nothing is lost.
        equal: Why nothing has to be set; empty where something has.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    lost: str = ""
    equal: str = ""


Rule = Callable[[Any], Here]


def renamed(
    path: str,
    values: Mapping[Any, Any] | None = None,
    change: Callable[[Any], Any] | None = None,
    note: str = "",
) -> Rule:
    """It is `path` here.

    Args:
        path: The dotted path.
        values: Their value -> ours; a value that is not in it is taken as it stands.
        change: Ours made of theirs, in place of `values`.
        note: What is not quite the same.
    """

    def rule(value: Any) -> Here:
        if value is None:
            return Here(equal="it is not set")
        if change is not None:
            return Here({path: change(value)}, note)
        known = values is not None and isinstance(value, str | bool | int) and value in values
        return Here({path: values[value] if known and values else value}, note)

    return rule


def lost(why: str, off: tuple[Any, ...] = ()) -> Rule:
    """graft has nothing for it; with a value of `off`, or one that says no, nothing is missed."""

    def rule(value: Any) -> Here:
        is_plain = isinstance(value, str | bool | int | float)
        is_off = value in off or (value in _OFF if is_plain else not value)
        return Here(equal="so does graft") if is_off else Here(lost=why)

    return rule


def equal(why: str) -> Rule:
    """Nothing has to be set, whatever the value."""
    return lambda value: Here(equal=why)


def fraction(path: str, count: str) -> Rule:
    """A share below 1 is `path`; from 1 on it counts rows, or steps, which graft has no way to say.

    Args:
        path: The dotted path of the share.
        count: What to do about a count.
    """

    def rule(value: Any) -> Here:
        if not value:
            return Here(equal="so does graft")
        number = float(value)
        return Here({path: number}) if number < 1 else Here(lost=count)

    return rule


def as_list(value: Any) -> list[Any]:
    """`"a,b"` and `[a, b]` as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def one_or_many(values: list[Any]) -> Any:
    """The one value of a list, or the list."""
    return values[0] if len(values) == 1 else values


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several names, which are parted by spaces."""
    return dict.fromkeys(names.split(), rule)


def packed(value: Any) -> Here:
    """Packing saves time; the loss is over the same tokens."""
    if value in (None, False):
        return Here(equal="so does graft")
    return Here(
        lost="graft pads rows in place of packing them: the same tokens are learned, slower."
    )
