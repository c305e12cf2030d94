"""Something wrong with the environment, and its cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Problem", "Severity"]

Severity = Literal["error", "warning", "hint"]


@dataclass(frozen=True)
class Problem:
    """Something wrong, and what to do about it.

    Attributes:
        severity: `error` where graft cannot work, `warning` where something will fail or be slow,
            `hint` where it may.
        what: One sentence.
        cure: One line, the command to type.
    """

    severity: Severity
    what: str
    cure: str
