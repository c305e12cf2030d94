"""Findings in the tokens of a row: its end, its beginning, its length, what they can say at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from graft.config import TaskType
from graft.data.check.examples import Examples
from graft.data.check.report import FAULT, MANY, SOME, Finding, severity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["token_findings"]

_UNKNOWN = 0.005  # share of tokens from which unknown ones are worth a word


def token_findings(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    limit: int,
    more: str,
) -> Iterator[Finding]:
    """What the tokens of the examples show.

    Args:
        examples: The examples.
        tokenizer: Whose tokens they are.
        ends: The ids of those that may end an answer.
        limit: To how many tokens they were cut.
        more: What to do for more of them.
    """
    yield from _ends(examples, ends, limit, more)
    yield from _beginnings(examples, tokenizer)
    yield from _unknown(examples, tokenizer)
    yield from _spelled(examples, tokenizer)


def _ends(examples: Examples, ends: frozenset[int], limit: int, more: str) -> Iterator[Finding]:
    """Answers that do not end, because they were cut or because nothing ends them."""
    total = len(examples)
    if len(examples.answers):
        last = _last_learned(examples)
        ended = _marked(examples.answers, ends)[last]
        endless = ~ended & ~examples.answer_cut & ~examples.blocks
        if endless.any():
            share = endless.sum() / total
            # The encoder ends every answer. Should one slip through, this is where it shows.
            yield Finding(
                "missing-end-token",
                severity(share, FAULT),
                int(endless.sum()),
                share,
                "no end token follows the answer, so the model would learn not to stop",
                "use a chat template that ends each assistant turn with a special token",
                examples.where(endless),
            )
    if examples.answer_cut.any():
        share = examples.answer_cut.sum() / total
        what = (
            "labels are"
            if examples.task_type is TaskType.TOKEN_CLS
            else "an answer, or its end, is"
        )
        yield Finding(
            "truncated-answers",
            severity(share, MANY),
            int(examples.answer_cut.sum()),
            share,
            f"{what} lost by cutting to {limit:,} tokens",
            f"{more}, or leave the longest rows out",
            examples.where(examples.answer_cut),
        )
    others = examples.truncated & ~examples.answer_cut
    if others.any():
        yield Finding(
            "truncated-rows",
            "remark",
            int(others.sum()),
            others.sum() / total,
            f"longer than {limit:,} tokens, and cut",
            f"{more}, or see that what matters comes first",
            examples.where(others),
        )


def _last_learned(examples: Examples) -> np.ndarray:
    """`[N]`: the place of the last token that each example learns; it learns one at least."""
    places = np.flatnonzero(examples.learned)
    after = np.searchsorted(places, examples.answer_bounds[1:])
    return places[after - 1]


def _beginnings(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    first = examples.bounds[:-1]
    second = np.minimum(first + 1, len(examples.ids) - 1)
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        # Where one token ends texts and begins them, it may well follow itself.
        if not isinstance(token, int) or token == tokenizer.eos_token_id:
            continue
        twice = (examples.ids[first] == token) & (examples.ids[second] == token)
        twice &= np.diff(examples.bounds) > 1
        if twice.any():
            share = twice.sum() / len(examples)
            name = tokenizer.convert_ids_to_tokens(token)
            yield Finding(
                "double-bos",
                severity(share, FAULT),
                int(twice.sum()),
                share,
                f"begins with {name} twice",
                f"remove {name} from the text: it is put in front by itself",
                examples.where(twice),
            )


def _unknown(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    unknown = tokenizer.unk_token_id
    used = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if not isinstance(unknown, int) or unknown in used:
        return
    hits = examples.ids == unknown
    share = hits.sum() / max(1, len(hits))
    if share >= _UNKNOWN:
        yield Finding(
            "unknown-tokens",
            severity(share, SOME),
            int(hits.sum()),
            share,
            f"{tokenizer.unk_token}, which stands for what the tokenizer does not know",
            "use a base model for this language and script",
            examples.where(examples.count(hits) > 0),
            unit="tokens",
        )


def _spelled(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Characters that the tokenizer has no token for, and spells byte by byte."""
    counts = np.bincount(examples.ids)
    used = np.flatnonzero(counts)
    texts = tokenizer.batch_decode(used[:, None].tolist(), skip_special_tokens=False)
    parts = used[np.array(["\ufffd" in text for text in texts], bool)]
    share = counts[parts].sum() / max(1, counts.sum())
    if share >= MANY:
        hits = _marked(examples.ids, frozenset(parts.tolist()))
        yield Finding(
            "characters-in-bytes",
            "remark",
            int(counts[parts].sum()),
            share,
            "a byte of a character: the tokenizer hardly knows this script",
            "use a base model for this language, or expect long rows and slow learning",
            examples.where(examples.count(hits) > 0),
            unit="tokens",
        )


def _marked(ids: np.ndarray, wanted: frozenset[int]) -> np.ndarray:
    """Whether each id is one of `wanted`."""
    size = max(int(ids.max(initial=0)), max(wanted, default=0)) + 1
    table = np.zeros(size, bool)
    table[list(wanted)] = True
    return table[ids]
