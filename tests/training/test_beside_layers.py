"""What a base model does beside attention is kept on packed rows, or they are padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    MixtralForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2MoeForCausalLM,
    Qwen2MoeForSequenceClassification,
)

from graft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from graft.config import TaskType
from graft.errors import ConfigError
from graft.packing import Unpackable, forward, proven_forward
from graft.training.batches import Batch
from graft.training.forward import Part, make_forward, without_dropout

from .test_forward import batch

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
CLASSIFIERS = [Qwen2ForSequenceClassification, Qwen2MoeForSequenceClassification]
LLAMA_4 = {"num_local_experts": 2, "intermediate_size_mlp": 24, "head_dim": 4}


def make(cls: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return cls(cls.config_class(**SMALL, **more))


def test_a_model_that_mixes_neighbours_is_padded(monkeypatch):
    """Convolutions and recurrences run on over the end of a row: a little, but they do."""
    base = make(Lfm2ForCausalLM, layer_types=["conv", "full_attention"])
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(Unpackable, match="convolutions"):
        proven_forward(model)
    monkeypatch.setattr(forward, "refuse_convolutions", lambda module: None)
    with pytest.raises(Unpackable, match="see each other"):
        proven_forward(model)


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
    assert not forward.pads
    got, _ = forward.loss([Part(Batch(inputs, rows=3, targets=3, tokens=0), 1 / 3)])
    assert forward.pads  # from now on, as passes and masks of dropout depend on it
    assert got.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


@pytest.mark.parametrize("lengths", [(3, 14, 14), (3, 15, 12), (14, 3, 9)])
@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_a_window_of_16_behind_virtual_tokens(kind, config, lengths):
    more = EXPERTS if kind is Qwen2MoeForSequenceClassification else {}
    base = make(kind, **more, **WINDOW | {"sliding_window": 16})
    model = get_peft_model(base, config(task_type="SEQ_CLS", num_virtual_tokens=6))
    ids = torch.randint(3, 300, (3, max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = torch.tensor([0, 1, 1])
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
    got, _ = make_forward(model, TaskType.SEQ_CLS).loss([Part(Batch(inputs, 3, 3, 0), 1 / 3)])
    assert got.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_mask_of_another_kind_is_not_passed_over():
    base = make(Qwen2MoeForSequenceClassification, **EXPERTS, **WINDOW)
    model = get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS"))
    base.set_attn_implementation("flex_attention")
    how = make_forward(model, TaskType.SEQ_CLS).how
    assert "a mask of kind BlockMask" in how


def test_routers_of_encoder_and_decoder():
    sides = ("encoder", "decoder")
    config = NllbMoeConfig(
        vocab_size=300,
        d_model=16,
        num_experts=4,
        expert_capacity=64,
        output_router_logits=True,
        **{f"{side}_layers": 2 for side in sides},
        **{f"{side}_attention_heads": 4 for side in sides},
        **{f"{side}_ffn_dim": 24 for side in sides},
        **{f"{side}_sparse_step": 2 for side in sides},
    )
    model = PeftModel(NllbMoeForConditionalGeneration(config))
    for name in ("one", "other"):
        own = LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", target_modules=["q_proj"])
        model.add_adapter(name, own)
    inputs = batch()
    inputs["labels"][:, :2] = inputs["input_ids"][:, :2]
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    packed = make_forward(model, TaskType.SEQ_2_SEQ_LM)
    assert "padded" in packed.how
    whole = Batch(inputs, rows=3, targets=19, tokens=0)
    with pytest.raises(ConfigError, match="routers"):
        packed.loss([Part(whole, 1 / 19, "one"), Part(whole, 1 / 19, "other")])


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
