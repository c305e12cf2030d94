from __future__ import annotations

import math

import pytest
import torch

from graft.config import TaskType
from graft.training.batches import make_batch
from graft.training.evaluate import evaluate
from tiny import tiny_bert

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_loss_is_the_mean_over_all_tokens(llama, lm_rows, lm_collator, batch_size):
    llama.train()
    metrics = evaluate(llama, lm_rows, lm_collator, TaskType.CAUSAL_LM, batch_size, CPU)
    assert llama.training
    total, count = 0.0, 0
    with torch.no_grad():
        for row in lm_rows:
            alone = make_batch([row], lm_collator, TaskType.CAUSAL_LM)
            total += llama(**alone.inputs).loss.item() * alone.targets
            count += alone.targets
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert set(metrics) == {"loss", "perplexity"}


def test_accuracy_is_the_share_of_right_answers(class_rows, class_collator):
    model = tiny_bert().eval()
    right = [
        model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax().item() == row["labels"]
        for row in class_rows
    ]
    metrics = evaluate(model, class_rows, class_collator, TaskType.SEQ_CLS, 5, CPU)
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert set(metrics) == {"loss", "accuracy"}
