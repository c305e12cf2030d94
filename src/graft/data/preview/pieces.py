"""Ids of tokens -> the pieces of text that they stand for, none lost and none doubled.

A tokenizer decodes a whole row; which token stands for which letters it does not say. Here a row is
decoded step by step: a token's text is what the row grows by. Where a character is spread over
several tokens, as most Chinese ones are for byte-level tokenizers, these make one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Piece", "make_pieces", "special_ids", "words_of"]

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
_BYTES = 4  # the most that a character has


@dataclass(frozen=True)
class Piece:
    """A token, or the few that share a character.

    Attributes:
        ids: The tokens.
        names: The tokens as the vocabulary spells them.
        text: What they stand for.
        learned: Whether they are learned (QUESTION_ANS: whether they are of the answer).
        special: Whether it is a special token.
        label: TOKEN_CLS: the label that is learned here.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    text: str
    learned: bool
    special: bool
    label: str | None = None


def make_pieces(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    learned: Sequence[bool],
    labels: Sequence[str | None] | None = None,
) -> tuple[Piece, ...]:
    """The pieces of a row.

    Args:
        tokenizer: Whose ids they are.
        ids: The row.
        learned: As long as the row: what a piece says of itself.
        labels: Likewise.
    """
    ids, special = [int(token) for token in ids], special_ids(tokenizer)
    pieces: list[Piece] = []
    window = start = 0  # the text before `start` is out; from `window` on it is decoded again
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[window:start])
        text = _decode(tokenizer, ids[window:end])
        # A word may change with what follows it: then the new tokens speak for themselves.
        text = (
            text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[start:end])
        )
        goes_on = (
            end < len(ids)
            and end - start < _BYTES
            and ids[end] not in special
            and (labels is not None or learned[end] == learned[start])
        )
        if goes_on and text.endswith(_BROKEN):
            continue
        taken = tuple(ids[start:end])
        names = tuple(str(name) for name in tokenizer.convert_ids_to_tokens(list(taken)))
        is_special = taken[0] in special
        pieces.append(
            Piece(
                taken,
                names,
                names[0] if is_special else text,
                bool(learned[start]),
                is_special,
                None if labels is None else labels[start],
            )
        )
        # Half a character must not become whole by what follows it.
        window, start = end if text.endswith(_BROKEN) else start, end
    return tuple(pieces)


def words_of(pieces: Sequence[Piece]) -> list[tuple[Piece, ...]]:
    """TOKEN_CLS: the pieces by words; a label stands at the first piece of its word."""
    words: list[tuple[Piece, ...]] = []
    for piece in pieces:
        alone = piece.special or piece.label is not None or not words or words[-1][0].special
        words = [*words, (piece,)] if alone else [*words[:-1], (*words[-1], piece)]
    return words


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokens that stand for no text."""
    added = tokenizer.added_tokens_decoder
    special = {token for token, entry in added.items() if entry.special}
    return frozenset(special.union(t for t in tokenizer.all_special_ids if isinstance(t, int)))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
