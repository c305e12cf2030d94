"""Findings between rows: the same row twice, the same prompt with other answers, in both sides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graft.config import TaskType
from graft.data.check.examples import Examples
from graft.data.check.report import MANY, SHOWN, SOME, Finding, severity

__all__ = ["overlap_findings"]

_CLASSES = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)

Twins = dict[int, int]  # an example -> the earlier one that it is like


def overlap_findings(examples: Examples) -> Iterator[Finding]:
    """What rows have in common that they should not."""
    trained = np.flatnonzero(~examples.held).tolist()
    held = np.flatnonzero(examples.held).tolist()
    rows: dict[bytes, int] = {}
    prompts: dict[bytes, int] = {}
    duplicates: Twins = {}
    differing: Twins = {}
    for index in trained:
        digest, prompt = examples.digests[index], examples.prompts[index]
        if (first := rows.setdefault(digest, index)) != index:
            duplicates[index] = first
        elif prompt is not None and (first := prompts.setdefault(prompt, index)) != index:
            differing[index] = first
    leaked = {index: rows[d] for index in held if (d := examples.digests[index]) in rows}
    same = len(leaked)
    for index in held:
        prompt = examples.prompts[index]
        if index not in leaked and prompt is not None and prompt in prompts:
            leaked[index] = prompts[prompt]
    yield from _duplicates(examples, duplicates, len(trained))
    yield from _different(examples, differing, len(trained))
    yield from _leakage(examples, leaked, same, len(held))


def _duplicates(examples: Examples, twins: Twins, total: int) -> Iterator[Finding]:
    if twins:
        yield Finding(
            "duplicates",
            "remark",
            len(twins),
            len(twins) / total,
            "exactly as an earlier row, which so counts twice",
            "remove them, or give the source a weight if that is meant",
            *_places(examples, twins),
        )


def _different(examples: Examples, twins: Twins, total: int) -> Iterator[Finding]:
    if twins:
        classes = examples.task_type in _CLASSES
        share = len(twins) / total
        yield Finding(
            "different-answers",
            severity(share, MANY if classes else None),
            len(twins),
            share,
            f"the prompt of an earlier row, with another {'label' if classes else 'answer'}",
            "keep one of them, unless several answers are meant",
            *_places(examples, twins),
        )


def _leakage(examples: Examples, twins: Twins, same: int, total: int) -> Iterator[Finding]:
    if twins:
        share = len(twins) / total
        answers = f", {same:,} of them with the same answer" if same else ""
        yield Finding(
            "leakage",
            severity(share, SOME),
            len(twins),
            share,
            f"the prompt is trained too{answers}, so the evaluation would flatter",
            "take them out of training or out of the evaluation; where eval_fraction parts the "
            "rows, remove those that are alike",
            *_places(examples, twins),
            unit="evaluation rows",
        )


def _places(examples: Examples, twins: Twins) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first = sorted(twins)[:SHOWN]
    return (
        tuple(examples.place(index) for index in first),
        tuple(examples.place(twins[index]) for index in first),
    )
