"""Rows of `prepare` -> one padded batch of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from graft.config import TaskType
from graft.data.template import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Collator"]

# What is learned of a row is one number each, and not one for each token.
_ONE_EACH = {
    TaskType.SEQ_CLS: ("labels",),
    TaskType.QUESTION_ANS: ("start_positions", "end_positions"),
}


class Collator:
    """Pads rows on the right to the longest of the batch.

    Args:
        tokenizer: Gives the id to pad with: its pad token's, else its end token's, else 0, as None
            does. Which one matters to nothing: padding is masked out and never learned.
        task_type: SEQ_CLS rows have one label each, QUESTION_ANS rows the places where the answer
            begins and ends, others one label per token.
        pad_to_multiple_of: Round the length of inputs up to a multiple of this.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        task_type: TaskType,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        ids = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        self.pad_id = next((token for token in ids if isinstance(token, int)), 0)
        self.task_type = task_type
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of `rows`.

        Returns:
            `input_ids` and `attention_mask`, `[B, T]`; `token_type_ids` where rows have them;
            `labels`, `[B]` for SEQ_CLS, else `[B, T]` (of the targets' own length for
            SEQ_2_SEQ_LM); for QUESTION_ANS `start_positions` and `end_positions`, `[B]`, instead.
        """
        inputs = [row["input_ids"] for row in rows]
        ones = [[1] * len(ids) for ids in inputs]
        batch = {
            "input_ids": self._padded(inputs, self.pad_id),
            "attention_mask": self._padded(ones, 0),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = self._padded([row["token_type_ids"] for row in rows], 0)
        for name in _ONE_EACH.get(self.task_type, ()):
            batch[name] = torch.tensor([row[name] for row in rows])
        if self.task_type not in _ONE_EACH:
            batch["labels"] = self._padded([row["labels"] for row in rows], IGNORED)
        return batch

    def _padded(self, rows: list[list[int]], value: int) -> torch.Tensor:
        longest = max(len(row) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        out = torch.full((len(rows), length), value)  # [B, T]
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = torch.as_tensor(row)
        return out
