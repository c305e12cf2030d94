"""Findings between rows: the same row twice, the same prompt with other answers, in both sides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graft.config import TaskType
from graft.data.check.examples import Examples
from graft.data.check.report import FAULT, MANY, Finding, severity

__all__ = ["overlap_findings"]


def overlap_findings(examples: Examples) -> Iterator[Finding]:
    """What rows have in common that they should not."""
    yield from _duplicates(examples)
    yield from _contradictions(examples)
    yield from _leakage(examples)


def _duplicates(examples: Examples) -> Iterator[Finding]:
    seen: set[bytes] = set()
    twice = np.zeros(len(examples), bool)
    for index in np.flatnonzero(~examples.held).tolist():
        digest = examples.digests[index]
        twice[index] = digest in seen
        seen.add(digest)
    if twice.any():
        yield Finding(
            "duplicates",
            "remark",
            int(twice.sum()),
            twice.sum() / (~examples.held).sum(),
            "exactly as an earlier row, which so counts twice",
            "remove them, or give the source a weight if that is meant",
            examples.where(twice),
        )


def _contradictions(examples: Examples) -> Iterator[Finding]:
    """Training rows that ask the same and answer differently."""
    first: dict[bytes, bytes] = {}
    differs = np.zeros(len(examples), bool)
    for index in np.flatnonzero(~examples.held).tolist():
        prompt, digest = examples.prompts[index], examples.digests[index]
        if prompt is not None:
            differs[index] = first.setdefault(prompt, digest) != digest
    if differs.any():
        classes = examples.task_type in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
        share = differs.sum() / (~examples.held).sum()
        yield Finding(
            "different-answers",
            severity(share, MANY if classes else None),
            int(differs.sum()),
            share,
            f"the prompt of an earlier row, with another {'label' if classes else 'answer'}",
            "keep one of them, unless several answers are meant",
            examples.where(differs),
        )


def _leakage(examples: Examples) -> Iterator[Finding]:
    held = examples.held
    trained = np.flatnonzero(~held).tolist()
    rows = {examples.digests[index] for index in trained}
    prompts = {examples.prompts[index] for index in trained} - {None}
    whole, asked = np.zeros(len(held), bool), np.zeros(len(held), bool)
    for index in np.flatnonzero(held).tolist():
        whole[index] = examples.digests[index] in rows
        asked[index] = whole[index] or examples.prompts[index] in prompts
    if asked.any():
        share = asked.sum() / held.sum()
        same = f", {whole.sum():,} of them with the same answer" if whole.any() else ""
        yield Finding(
            "leakage",
            severity(share, FAULT),
            int(asked.sum()),
            share,
            f"the prompt is trained too{same}, so the evaluation would flatter",
            "take them out of training or out of the evaluation; where eval_fraction parts the "
            "rows, remove the duplicates",
            examples.where(asked),
            unit="evaluation rows",
        )
