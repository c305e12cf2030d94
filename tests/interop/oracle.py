"""The same adapter attached by PEFT and by graft to the same base model, and what each says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import graft
from conformance.families import FAMILIES, VOCAB, Family
from graft.config import TaskType

__all__ = [
    "CASES",
    "MODELS",
    "PEFT_WARNS",
    "TOLERANCE",
    "Case",
    "assert_same",
    "copy_weights",
    "gradients",
    "make_batch",
    "outputs",
    "randomise",
]

TOLERANCE = 1e-5  # fp32, absolute; logits and gradients here are of order 1
# What PEFT makes transformers and Python say on these models. graft itself is silent.
PEFT_WARNS = [
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but:UserWarning"),
]


@dataclass(frozen=True)
class Model:
    """A base model of the suite, and the names of its layers.

    Attributes:
        family: Its architecture.
        task: Its task.
        attention: Projections that LoRA adapts by default.
        factors: Projections whose output IA3 scales by default.
        forward: Projections whose input IA3 scales by default.
    """

    family: Family
    task: TaskType
    attention: list[str]
    factors: list[str]
    forward: list[str]

    def make(self) -> nn.Module:
        """A base model of its own, always with the same weights."""
        return self.family.model(self.task)


_NAMED = {family.name: family for family in FAMILIES}
_LLAMA, _BERT = _NAMED["Llama"], _NAMED["Bert"]
_OF_LLAMA = (["q_proj", "v_proj"], ["k_proj", "v_proj"], ["down_proj"])
_OF_BERT = (["query", "value"], ["key", "value"], ["output.dense"])
MODELS = {
    "llama": Model(_LLAMA, TaskType.CAUSAL_LM, *_OF_LLAMA),
    "gpt2": Model(_NAMED["GPT2"], TaskType.CAUSAL_LM, ["c_attn"], ["c_attn"], ["mlp.c_proj"]),
    "bloom": Model(
        _NAMED["Bloom"],
        TaskType.CAUSAL_LM,
        ["query_key_value"],
        ["query_key_value"],
        ["dense_4h_to_h"],
    ),
    "bert": Model(_BERT, TaskType.SEQ_CLS, *_OF_BERT),
    "t5": Model(_NAMED["T5"], TaskType.SEQ_2_SEQ_LM, ["q", "v"], ["k", "v"], ["wo"]),
    "llama-cls": Model(_LLAMA, TaskType.SEQ_CLS, *_OF_LLAMA),
    "bert-tokens": Model(_BERT, TaskType.TOKEN_CLS, *_OF_BERT),
    "bert-qa": Model(_BERT, TaskType.QUESTION_ANS, *_OF_BERT),
}


@dataclass(frozen=True)
class Case:
    """A method with some of its options, by the names that both libraries have."""

    name: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def values(self, model: Model) -> dict[str, Any]:
        """Arguments of the config on `model`."""
        values: dict[str, Any] = {"task_type": model.task.value}
        if self.config == "LoraConfig":
            values |= {"r": 4, "lora_alpha": 6, "target_modules": model.attention}
        elif self.config == "IA3Config":
            values["target_modules"] = [*model.factors, *model.forward]
            values["feedforward_modules"] = model.forward
        else:
            values["num_virtual_tokens"] = 5
        return values | dict(self.options)

    def peft(self, model: Model) -> Any:
        """The adapter on a new base model, by PEFT."""
        config = getattr(peft, self.config)(**self.values(model))
        return peft.get_peft_model(model.make(), config).eval()

    def graft(self, model: Model) -> graft.PeftModel:
        """The adapter on a new base model, by graft."""
        config = getattr(graft, self.config)(**self.values(model))
        return graft.get_peft_model(model.make(), config).eval()


CASES = [
    Case("prompt-random", "PromptTuningConfig", {"prompt_tuning_init": "RANDOM"}),
    Case("prompt-vocab", "PromptTuningConfig", {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    Case("p-tuning-mlp", "PromptEncoderConfig", {"encoder_hidden_size": 24}),
    Case(
        "p-tuning-lstm",
        "PromptEncoderConfig",
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 12},
    ),
    Case("prefix", "PrefixTuningConfig"),
    Case("prefix-zero", "PrefixTuningConfig", {"init_weights": "zero"}),
    Case(
        "prefix-projection",
        "PrefixTuningConfig",
        {"prefix_projection": True, "encoder_hidden_size": 24},
    ),
    Case("lora", "LoraConfig"),
    Case("lora-rslora", "LoraConfig", {"use_rslora": True}),
    Case("lora-dora", "LoraConfig", {"use_dora": True}),
    Case("lora-dropout", "LoraConfig", {"lora_dropout": 0.5}),  # evaluated: without effect
    Case("lora-all-linear", "LoraConfig", {"target_modules": "all-linear"}),
    Case(
        "lora-regex",
        "LoraConfig",
        {"target_modules": r".*\.1\..*(q|query|q_proj|c_attn|query_key_value)"},
    ),
    Case("ia3", "IA3Config"),
    Case("ia3-attention", "IA3Config", {"feedforward_modules": []}),
]


def randomise(module: nn.Module, seed: int = 1) -> None:
    """Give everything that learns random values, so that no part is without effect."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            middle = 1.0 if "ia3" in name or "magnitude" in name else 0.0
            parameter.data = middle + 0.1 * torch.randn(parameter.shape, generator=dice)


def copy_weights(theirs: Any, ours: graft.PeftModel) -> None:
    """Give graft's model the weights of PEFT's, an encoder of virtual tokens included."""
    virtual = ours.adapter("default").virtual_tokens
    if virtual is not None and virtual.encoder is not None:
        state = theirs.prompt_encoder["default"].state_dict()
        # On an encoder-decoder PEFT makes twice as many rows, and uses the first half.
        state["embedding.weight"] = state["embedding.weight"][: virtual.num_virtual_tokens]
        virtual.encoder.load_state_dict(state)
    graft.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))


def make_batch(model: Model, rows: int = 2, tokens: int = 6) -> dict[str, Tensor]:
    """Rows without padding (which PEFT gets wrong with virtual tokens), and labels."""
    dice = torch.Generator().manual_seed(3)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=dice)

    ids = draw(3, VOCAB, rows, tokens)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.task is TaskType.QUESTION_ANS:
        batch["start_positions"] = draw(0, tokens, rows)
        batch["end_positions"] = draw(0, tokens, rows)
    elif model.task is TaskType.SEQ_CLS:
        batch["labels"] = draw(0, 3, rows)
    elif model.task is TaskType.TOKEN_CLS:
        batch["labels"] = draw(0, 3, rows, tokens)
    else:
        batch["labels"] = draw(3, VOCAB, rows, tokens)
    return batch


def outputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss and logits, without the columns of virtual tokens, which PEFT returns."""
    if _cache_refused(model):
        return _bert_with_prefix(model, batch)
    tokens = batch["input_ids"].shape[1]
    out = model(**batch)
    found = {"loss": out.loss}
    for name in ("logits", "start_logits", "end_logits"):
        value = out.get(name)
        if value is not None:
            per_token = value.ndim > 1 and value.shape[1] >= tokens
            found[name] = value[:, -tokens:] if per_token else value
    return found


def _cache_refused(model: Any) -> bool:
    """PEFT gives a prefix as `past_key_values`, and transformers renamed that argument."""
    is_prefix = model.active_peft_config.peft_type == "PREFIX_TUNING"
    return (
        isinstance(model, peft.PeftModel) and is_prefix and hasattr(model.get_base_model(), "bert")
    )


def _bert_with_prefix(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT means to do: its own prefix as the cache of the encoder, then the head."""
    base, ids = model.get_base_model(), batch["input_ids"]
    count = model.active_peft_config.num_virtual_tokens
    mask = torch.cat([torch.ones(len(ids), count, dtype=torch.long), batch["attention_mask"]], 1)
    hidden = base.bert(ids, attention_mask=mask, cache=model.get_prompt(len(ids)))
    logits = base.classifier(hidden.pooler_output)
    return {"loss": nn.functional.cross_entropy(logits, batch["labels"]), "logits": logits}


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of everything that learns, by PEFT's keys; those of virtual tokens by the names
    of the parameters that make them."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    if not model.active_peft_config.is_prompt_learning:
        library = peft if isinstance(model, peft.PeftModel) else graft
        return library.get_peft_model_state_dict(model, {**model.state_dict(), **grads})
    found = {}
    for name, grad in grads.items():
        name = name.replace(".modules_to_save.default", "").replace(
            "adapters.default.", "base_model."
        )
        if "classifier" not in name:
            name = re.sub(r".*(embedding|mlp_head|lstm_head|transform)\b", r"\1", name)
            name = re.sub(r".*prompt_embeddings", "embedding.weight", name)
        found[name] = grad
    return found


def assert_same(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> None:
    """The same names, and values that differ by `tolerance` at most."""
    assert set(ours) == set(theirs)
    errors = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= tolerance}
    assert not wrong, wrong
