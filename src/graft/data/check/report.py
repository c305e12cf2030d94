"""What a check says: counts, findings, and whether the run would be spoiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graft.data.rows import Rows

__all__ = [
    "FAULT",
    "MANY",
    "SHOWN",
    "SOME",
    "Finding",
    "Origin",
    "Report",
    "Side",
    "place_of",
    "severity",
]

Severity = Literal["spoils", "remark"]

# Shares from which a finding spoils the run. What should not be there at all is a slip in a few
# rows and a broken file in more; what flatters or hides is felt from some on; what is a matter of
# degree is bad where it is common.
FAULT = 0.01
SOME = 0.05
MANY = 0.25

SHOWN = 5  # rows that a finding names


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        name: Which kind, in a word or two with hyphens.
        severity: `spoils` where the run would not be worth its time, else `remark`.
        count: How many have it.
        share: How many that is of all, from 0 to 1.
        unit: Of what: `rows`, `evaluation rows`, `tokens`, `labels`.
        what: What is so about them.
        cure: What to do.
        where: The first of the rows, as `FILE:ROW`, rows counted from 1.
        like: For each of them the row that it is like; empty where that is not the point.
    """

    name: str
    severity: Severity
    count: int
    share: float
    what: str
    cure: str
    where: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    unit: str = "rows"


@dataclass(frozen=True)
class Side:
    """The rows to train on, or those to evaluate on.

    Attributes:
        rows: Rows, after dropping those in which nothing is left to learn; blocks of a text.
        tokens: Tokens of all rows, of targets too.
        shortest: Tokens of the shortest row.
        median: Tokens of the row in the middle.
        p95: Tokens that 95 % of the rows do not exceed.
        longest: Tokens of the longest row.
        learned: Tokens that are learned; 0 where what is learned is no token.
        truncated: Rows that were cut to the length.
        labels: SEQ_CLS, TOKEN_CLS: how often each label is there, most often first.
    """

    rows: int
    tokens: int
    shortest: int
    median: int
    p95: int
    longest: int
    learned: int
    truncated: int
    labels: dict[str, int]


@dataclass(frozen=True)
class Origin:
    """A source, and how many rows it has.

    Attributes:
        name: What the user calls it.
        rows: Its rows, as they are in the files.
        held: Whether it is to evaluate on.
    """

    name: str
    rows: int
    held: bool


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        origins: Where the rows come from.
        dropped: Rows in which nothing is left to learn; they are on neither side.
        limit: Most tokens in a row.
        train: The rows to train on.
        eval: The rows to evaluate on; None where there are none.
        findings: What spoils the run first.
    """

    origins: tuple[Origin, ...]
    dropped: int
    limit: int
    train: Side
    eval: Side | None
    findings: tuple[Finding, ...]

    @property
    def spoiled(self) -> bool:
        """Whether a finding would spoil the run."""
        return any(finding.severity == "spoils" for finding in self.findings)


def severity(share: float, limit: float | None) -> Severity:
    """`spoils` from a share of `limit` on; never where that is None."""
    return "spoils" if limit is not None and share >= limit else "remark"


def place_of(rows: Rows, index: int) -> str:
    """`FILE:ROW` for the row `index`, as findings name it."""
    file, row = rows.place(index)
    return f"{file}:{row}"
