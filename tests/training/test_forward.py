"""Packed where the model can, padded where it cannot, and the model's own loss either way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration

from graft import LoraConfig, PromptTuningConfig, get_peft_model
from graft.config import TaskType
from graft.training.batches import Batch
from graft.training.forward import Part, make_forward, without_dropout
from tiny import tiny_bert, tiny_llama


def bloom() -> BloomForCausalLM:
    config = {"vocab_size": 300, "hidden_size": 16, "n_layer": 2, "n_head": 4}
    return BloomForCausalLM(BloomConfig(**config, hidden_dropout=0.0, attention_dropout=0.0))


def t5() -> T5ForConditionalGeneration:
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_heads": 4}
    config = T5Config(
        vocab_size=300, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, **sizes
    )
    return T5ForConditionalGeneration(config)


def batch(labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 300, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    own = ids.masked_fill(mask == 0, -100)
    own[:, :2] = -100
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": own if labels is None else labels,
    }


@pytest.mark.parametrize(
    ("make", "config", "task", "labels", "how"),
    [
        (tiny_llama, LoraConfig(r=2), TaskType.CAUSAL_LM, None, "rows are packed"),
        (
            tiny_llama,
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
            TaskType.CAUSAL_LM,
            None,
            "rows are packed",
        ),
        (
            tiny_bert,
            LoraConfig(r=2, task_type="SEQ_CLS"),
            TaskType.SEQ_CLS,
            torch.tensor([0, 1, 1]),
            "rows are packed between embeddings and head",
        ),
        (
            tiny_bert,
            PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
            TaskType.SEQ_CLS,
            torch.tensor([0, 1, 1]),
            "rows are packed between embeddings and head",
        ),
        (
            bloom,
            LoraConfig(r=2),
            TaskType.CAUSAL_LM,
            None,
            "rows are padded (BloomModel takes no positions, or no more)",
        ),
        (
            t5,
            LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"),
            TaskType.SEQ_2_SEQ_LM,
            None,
            "rows are packed",
        ),
    ],
)
def test_it_is_the_models_own_loss(make, config, task, labels, how):
    base = make()
    inputs = batch(labels)
    model = get_peft_model(base, config).train()
    with without_dropout(model):
        wanted = model(**inputs).loss
        gradient = torch.autograd.grad(wanted, trained(model))
        forward = make_forward(model, task)
        assert forward.how == how
        counted = inputs["labels"] if task is not TaskType.CAUSAL_LM else inputs["labels"][:, 1:]
        targets = int((counted != -100).sum())
        whole = Batch(inputs, rows=3, targets=targets, tokens=0)
        got, shares = forward.loss([Part(whole, 1 / targets)])
        assert [share.item() for share in shares] == [pytest.approx(got.item(), rel=1e-6)]
        assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
        for own, other in zip(torch.autograd.grad(got, trained(model)), gradient, strict=True):
            assert torch.allclose(own, other, atol=1e-6)


def test_rows_are_packed_where_that_was_measured():
    model = get_peft_model(tiny_llama(), LoraConfig(r=2)).to("meta")
    how = make_forward(model, TaskType.CAUSAL_LM).how
    assert how == "rows are padded (packing has not been measured on meta)"


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def test_dropout_of_the_base_model_is_off_for_a_while():
    base = tiny_llama(dropout=0.5)
    base.model.extra = nn.Dropout(0.3)
    model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.25)).train()
    attention = base.model.layers[0].self_attn
    inputs = batch()
    assert model(**inputs).loss.item() != model(**inputs).loss.item()
    lora = [a for a in model.modules() if isinstance(getattr(a, "dropout", None), float)]
    for own in lora:
        own.dropout = 0.0  # the adapter's is its own affair
    with without_dropout(model):
        assert attention.attention_dropout == 0.0
        assert base.model.extra.p == 0.0
        assert model(**inputs).loss.item() == model(**inputs).loss.item()
    with pytest.raises(ZeroDivisionError), without_dropout(model):
        _ = 1 / 0
    assert attention.attention_dropout == 0.5
    assert base.model.extra.p == 0.3
