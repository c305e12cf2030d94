"""The whole check: sources -> counts and findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graft.config import TaskType
from graft.data.check.examples import Examples, gather
from graft.data.check.labels import count_labels, label_findings
from graft.data.check.overlap import overlap_findings
from graft.data.check.report import MANY, SHOWN, Finding, Origin, Report, Side, place_of, severity
from graft.data.check.texts import Texts
from graft.data.check.tokens import token_findings
from graft.data.config import DataConfig
from graft.data.encoding import EncodedSource, Tell
from graft.data.prepare import encode_sources, held_out
from graft.data.rendering import end_tokens
from graft.data.rows import Rows
from graft.data.sources import read_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_data"]


def check_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType,
    seed: int = 42,
    room: int | None = None,
    rows_per_step: int = 1,
    tell: Tell | None = None,
) -> Report:
    """Count what is in the data, and find what would spoil a run.

    A finding spoils the run

    - always: labels that only the evaluation has, one label alone;
    - from 1 % of the rows on, below which it is a slip: no end token after an answer, a beginning
      token twice;
    - from 5 % on: evaluation rows whose prompt is trained, unknown tokens;
    - from 25 % of the rows on, below which it is a matter of degree: answers cut at the length,
      rows that are dropped because nothing is left to learn, empty prompts, broken characters,
      special tokens in the text of turns, the same text with different labels.

    All else is a remark: rows cut at the length, duplicates, the same prompt with different
    answers, one label that rules or one that is rare, a script that is spelled in bytes,
    placeholders such as {{name}}, fewer rows than a step takes.

    Args:
        config: The `data:` section of the run file.
        tokenizer: The base model's tokenizer.
        task_type: What the rows are for.
        seed: The run's, which decides what `config.eval_fraction` sets aside.
        room: How many tokens of a row the base model can read; None where that is not known.
        rows_per_step: Rows that an optimizer step takes.
        tell: Hears, in a line, what is being done.

    Raises:
        DataError: Files, columns or rows that a run would refuse too.
    """
    learned, heldout = encode_sources(config, tokenizer, task_type, tell)
    sources = [*learned, *heldout]
    templates = [encoded.chat_template for encoded in sources]
    ends = end_tokens(tokenizer, next(filter(None, templates), None))
    texts = Texts(tokenizer, ends)
    places: list[Rows] = []
    for encoded in sources:
        rows = read_source(encoded.source)
        texts.look(rows, encoded.format, in_turns=encoded.chat_template is not None)
        places.append(Rows([], rows.files))  # the rows themselves are no longer needed
    aside = held_out(learned, config.eval_fraction, config.split_seed(seed))
    held = np.concatenate([*aside, *(np.ones(len(encoded.rows), bool) for encoded in heldout)])
    examples = gather(sources, places, held, task_type)
    limit = sources[0].limit
    # Where the tokenizer says less than max_length, the model reads no more.
    may_raise = limit == config.max_length and (room is None or limit < room)
    more = "raise max_length" if may_raise else "the base model reads no more: shorten the rows"
    findings = [
        *_dropped(sources, places, limit, more),
        *token_findings(examples, tokenizer, frozenset(ends.values()), limit, more),
        *overlap_findings(examples),
        *label_findings(examples),
        *texts.findings(),
        *_few(int((~held).sum()), rows_per_step),
    ]
    return Report(
        origins=tuple(
            Origin(encoded.source.name, encoded.rows_read, number >= len(learned))
            for number, encoded in enumerate(sources)
        ),
        dropped=sum(len(encoded.dropped) for encoded in sources),
        limit=limit,
        train=_side(examples, ~held),
        eval=_side(examples, held) if held.any() else None,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "spoils")),
    )


def _side(examples: Examples, chosen: np.ndarray) -> Side:
    lengths = examples.lengths[chosen]
    learned = np.zeros(len(examples), int)
    if len(examples.answers):
        learned = examples.count(examples.learned, examples.answer_bounds)
    elif examples.task_type is TaskType.TOKEN_CLS and examples.labels is not None:
        learned = examples.count(examples.labels.is_valid().to_numpy(zero_copy_only=False))
    median, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return Side(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        shortest=int(lengths.min()),
        median=int(median),
        p95=int(p95),
        longest=int(lengths.max()),
        learned=int(learned[chosen].sum()),
        truncated=int(examples.truncated[chosen].sum()),
        labels=count_labels(examples, chosen),
    )


def _dropped(
    sources: Sequence[EncodedSource], places: Sequence[Rows], limit: int, more: str
) -> Iterator[Finding]:
    dropped = [
        (rows, index)
        for encoded, rows in zip(sources, places, strict=True)
        for index in dict.fromkeys(encoded.dropped)
    ]
    if dropped:
        share = len(dropped) / sum(encoded.rows_read for encoded in sources)
        yield Finding(
            "nothing-to-train-on",
            severity(share, MANY),
            len(dropped),
            share,
            f"dropped, as nothing is left to learn in the first {limit:,} tokens",
            f"{more}, shorten the prompts, or remove the rows",
            tuple(place_of(rows, index) for rows, index in dropped[:SHOWN]),
        )


def _few(rows: int, rows_per_step: int) -> Iterator[Finding]:
    if rows < rows_per_step:
        yield Finding(
            "few-rows",
            "remark",
            rows,
            1.0,
            f"fewer than the {rows_per_step:,} that one step takes, so an epoch is a single step",
            "lower per_device_train_batch_size or gradient_accumulation_steps",
        )
