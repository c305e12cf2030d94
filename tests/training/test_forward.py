"""Packed where the model can, padded where it cannot, and the model's own loss either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Llama4ForCausalLM,
    MixtralForCausalLM,
    Qwen2ForCausalLM,
    Qwen2MoeForCausalLM,
    Qwen2MoeForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from graft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from graft.config import TaskType
from graft.errors import ConfigError
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


# --- what the base model does beside its layers ------------------------------------------------

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
LLAMA_4 = {"num_local_experts": 2, "intermediate_size_mlp": 24, "head_dim": 4}


def make(cls: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return cls(cls.config_class(**SMALL, **more))


@pytest.mark.parametrize(
    ("build", "packs"),
    [
        (lambda: make(Qwen2ForCausalLM, **WINDOW), True),
        (lambda: make(Qwen2MoeForCausalLM, **EXPERTS, **WINDOW), False),
        (lambda: make(Llama4ForCausalLM, **LLAMA_4, attention_chunk_size=6), False),
    ],
    ids=["handed to the attention", "told by the mask", "chunks"],
)
def test_a_window_is_kept(build, packs):
    """The window of some models is in their mask alone, which packed rows do without."""
    inputs = batch()
    model = get_peft_model(build(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    forward = make_forward(model, TaskType.CAUSAL_LM)
    assert ("packed" in forward.how) is packs
    whole = Batch(inputs, rows=3, targets=13, tokens=0)
    got, _ = forward.loss([Part(whole, 1 / 13)])
    assert got.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


def test_a_window_that_rows_of_a_classifier_reach_first_in_training():
    base = make(Qwen2MoeForSequenceClassification, **EXPERTS, **WINDOW | {"sliding_window": 8})
    inputs = batch(torch.tensor([0, 1, 1]))
    model = get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS"))
    forward = make_forward(model, TaskType.SEQ_CLS)
    assert "packed" in forward.how  # the rows of the proof are shorter than the window
    got, _ = forward.loss([Part(Batch(inputs, rows=3, targets=3, tokens=0), 1 / 3)])
    assert got.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


def test_the_loss_of_routers_is_kept():
    inputs = batch()
    base = make(MixtralForCausalLM, num_local_experts=4, output_router_logits=True)
    model = PeftModel(base)
    for name in ("one", "other"):
        model.add_adapter(name, LoraConfig(r=2, task_type="CAUSAL_LM"))
    forward = make_forward(model, TaskType.CAUSAL_LM)
    assert "routers' loss" in forward.how
    whole = Batch(inputs, rows=3, targets=13, tokens=0)
    got, _ = forward.loss([Part(whole, 1 / 13, "one")])
    wanted = model(**inputs, adapter_names=["one"] * 3)
    assert wanted.aux_loss > 0
    assert got.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    with pytest.raises(ConfigError, match="routers"):  # adapters take turns then
        forward.loss([Part(whole, 1 / 13, "one"), Part(whole, 1 / 13, "other")])


def test_dropout_that_a_model_reads_from_its_config_is_off_too():
    sizes = {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global"], 2]],
    }
    config = GPTNeoConfig(vocab_size=300, attention_dropout=0.4, resid_dropout=0.4, **sizes)
    model = get_peft_model(GPTNeoForCausalLM(config), LoraConfig(r=2)).train()
    model.base_model.config.probe_dropout = 0.3
    with without_dropout(model):
        seen = {name: getattr(config, name) for name in ("attention_dropout", "probe_dropout")}
        assert set(seen.values()) == {0.0}
        assert torch.equal(model(**batch()).loss, model(**batch()).loss)
    assert (config.attention_dropout, config.resid_dropout, config.probe_dropout) == (0.4, 0.4, 0.3)
