"""How good the model is on rows it does not learn from."""

from __future__ import annotations

import math

import torch
from torch import nn

from graft.config import TaskType
from graft.training.batches import Collate, Rows, make_batch, split

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    rows: Rows,
    collate: Collate,
    task_type: TaskType,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """The mean loss over all targets of `rows`, and what follows from it.

    Returns:
        `loss`, and `perplexity` for a language model or `accuracy` for a classifier.
    """
    was_training = model.training
    model.eval()
    loss, targets, correct = 0.0, 0, 0
    with torch.no_grad():
        for indices in split(range(len(rows)), batch_size):
            batch = make_batch([rows[i] for i in indices], collate, task_type)
            inputs = {name: value.to(device) for name, value in batch.inputs.items()}
            out = model(**inputs)
            loss += out.loss.item() * batch.targets
            targets += batch.targets
            if task_type is TaskType.SEQ_CLS:
                correct += int((out.logits.argmax(-1) == inputs["labels"]).sum())
    model.train(was_training)
    metrics = {"loss": loss / targets}
    if task_type is TaskType.SEQ_CLS:
        metrics["accuracy"] = correct / targets
    if task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))  # above, exp overflows
    return metrics
