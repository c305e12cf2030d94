"""The loss of rows from a model's outputs, for passes whose rows are of several adapters.

The same as a model's own, which is a mean over the whole batch: cross entropy over the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.config import TaskType
from graft.data.template import IGNORED

__all__ = ["summed_loss"]


def summed_loss(
    task_type: TaskType, outputs: Any, batches: Sequence[dict[str, Tensor]]
) -> list[Tensor]:
    """The sum over each batch's targets of their cross entropies.

    Args:
        task_type: What the logits are.
        outputs: Of a model for the rows of all batches, one behind the other, each padded on the
            right to the longest of them.
        batches: The inputs, each padded to its own longest row, with its labels.
    """
    sizes = [len(batch["input_ids"]) for batch in batches]
    # One split: a slice per batch would make each slice's backward allocate the whole.
    if task_type is TaskType.QUESTION_ANS:
        starts, ends = (
            _cut(outputs[f"{side}_logits"].split(sizes), batches) for side in ("start", "end")
        )
        return [
            (_sum(start, batch["start_positions"]) + _sum(end, batch["end_positions"])) / 2
            for start, end, batch in zip(starts, ends, batches, strict=True)
        ]
    pieces: Sequence[Tensor] = outputs.logits.split(sizes)
    if task_type is TaskType.SEQ_CLS:
        pairs = zip(pieces, batches, strict=True)
        return [_sum(logits, batch["labels"]) for logits, batch in pairs]
    sums = []
    for logits, batch in zip(_cut(pieces, batches, "labels"), batches, strict=True):
        labels = batch["labels"]
        if task_type is TaskType.CAUSAL_LM:
            logits, labels = logits[:, :-1], labels[:, 1:]
        sums.append(_sum(logits.flatten(0, 1), labels.flatten()))
    return sums


def _cut(
    pieces: Sequence[Tensor], batches: Sequence[dict[str, Tensor]], like: str = "input_ids"
) -> list[Tensor]:
    """Each piece [b, T, ...] without the columns that its own batch does not have."""
    pairs = zip(pieces, batches, strict=True)
    return [piece[:, : batch[like].shape[1]] for piece, batch in pairs]


def _sum(logits: Tensor, labels: Tensor) -> Tensor:
    """logits [N, C], labels [N]; in fp32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, ignore_index=IGNORED, reduction="sum")
