"""Text that others wrote, made fit to be shown: in a terminal, in a page, in a plot.

Every character can be seen, and none moves the cursor or turns the others round.
"""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]

_JOINERS = "\u200c\u200d"  # without them letters and emoji fall apart


def visible(text: str) -> str:
    """`text` with a sign for each character that cannot be seen, or that would move the others."""
    return "".join(map(_sign, text))


def _sign(char: str) -> str:
    if char == "\n":
        return "↵\n"
    if char == "\t":
        return "⇥"
    if char < " ":
        return chr(0x2400 + ord(char))  # the control pictures
    if char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co"):
        return char
    return f"‹U+{ord(char):04X}›"
