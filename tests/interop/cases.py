"""What is compared: base models, and methods with options, by names that both libraries have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
from torch import nn

import graft
from conformance.families import FAMILIES, Family
from graft.config import TaskType

__all__ = ["CASES", "FIVE", "MODELS", "WITH_HEADS", "Case", "Model", "each_pair", "each_saved_pair"]


@dataclass(frozen=True)
class Model:
    """A base model, and the names of its layers.

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
_OF_LLAMA = (["q_proj", "v_proj"], ["k_proj", "v_proj"], ["down_proj"])
_OF_GPT2 = (["c_attn"], ["c_attn"], ["mlp.c_proj"])
_OF_BLOOM = (["query_key_value"], ["query_key_value"], ["dense_4h_to_h"])
_OF_BERT = (["query", "value"], ["key", "value"], ["output.dense"])
_OF_T5 = (["q", "v"], ["k", "v"], ["wo"])
MODELS = {
    "llama": Model(_NAMED["Llama"], TaskType.CAUSAL_LM, *_OF_LLAMA),
    "gpt2": Model(_NAMED["GPT2"], TaskType.CAUSAL_LM, *_OF_GPT2),
    "bloom": Model(_NAMED["Bloom"], TaskType.CAUSAL_LM, *_OF_BLOOM),
    "bert": Model(_NAMED["Bert"], TaskType.SEQ_CLS, *_OF_BERT),
    "t5": Model(_NAMED["T5"], TaskType.SEQ_2_SEQ_LM, *_OF_T5),
    "llama-cls": Model(_NAMED["Llama"], TaskType.SEQ_CLS, *_OF_LLAMA),
    "bert-tokens": Model(_NAMED["Bert"], TaskType.TOKEN_CLS, *_OF_BERT),
    "bert-qa": Model(_NAMED["Bert"], TaskType.QUESTION_ANS, *_OF_BERT),
}
FIVE = ("llama", "gpt2", "bloom", "bert", "t5")
WITH_HEADS = ("llama-cls", "bert-tokens", "bert-qa")


@dataclass(frozen=True)
class Case:
    """A method with some of its options.

    Attributes:
        name: For the report.
        config: Name of the config's class.
        options: Its arguments, beside what every model needs; or how they follow from the model.
        models: Names of the models to try it on.
    """

    name: str
    config: str
    options: Mapping[str, Any] | Callable[[Model], Mapping[str, Any]] = field(default_factory=dict)
    models: tuple[str, ...] = FIVE

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
        options = self.options(model) if callable(self.options) else self.options
        return values | dict(options)

    def peft(self, model: Model) -> Any:
        """The adapter on a new base model, by PEFT."""
        config = getattr(peft, self.config)(**self.values(model))
        return peft.get_peft_model(model.make(), config).eval()

    def graft(self, model: Model) -> graft.PeftModel:
        """The adapter on a new base model, by graft."""
        config = getattr(graft, self.config)(**self.values(model))
        return graft.get_peft_model(model.make(), config).eval()


def _lora(name: str, *models: str, **options: Any) -> Case:
    return Case(f"lora-{name}", "LoraConfig", options, models or FIVE)


def _patterns(model: Model) -> dict[str, Any]:
    return {
        "target_modules": [*model.attention, *model.forward],
        "rank_pattern": {model.attention[0]: 2, r".*\.1\..*" + model.forward[0]: 3},
        "alpha_pattern": {model.attention[-1]: 7},
    }


# On an encoder-decoder PEFT's LSTM also reads the rows that are never used, so that it cannot be
# compared while it learns; what it saves can.
LSTM = Case(
    "p-tuning-lstm",
    "PromptEncoderConfig",
    {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 12},
    ("llama", "gpt2", "bloom", "bert"),
)
CASES = [
    Case("prompt-random", "PromptTuningConfig", {"prompt_tuning_init": "RANDOM"}),
    Case("prompt-vocab", "PromptTuningConfig", {"prompt_tuning_init": "SAMPLE_VOCAB"}, ("llama",)),
    Case("p-tuning-mlp", "PromptEncoderConfig", {"encoder_hidden_size": 24}),
    LSTM,
    Case("prefix", "PrefixTuningConfig"),
    Case("prefix-zero", "PrefixTuningConfig", {"init_weights": "zero"}, ("llama", "t5")),
    Case(
        "prefix-projection",
        "PrefixTuningConfig",
        {"prefix_projection": True, "encoder_hidden_size": 24},
    ),
    Case("lora", "LoraConfig", models=(*FIVE, *WITH_HEADS)),
    _lora("rslora", "llama", use_rslora=True),
    _lora("dora", use_dora=True),
    _lora("dropout", "llama", lora_dropout=0.5),  # evaluated, so without effect
    _lora("all-linear", target_modules="all-linear"),
    _lora("regex", "llama", target_modules=r".*\.1\..*(q|up)_proj"),
    Case("lora-patterns", "LoraConfig", _patterns),
    _lora("exclude", "llama", "bert", exclude_modules=r".*\.0\..*"),
    _lora("layers", "llama", "gpt2", "bert", layers_to_transform=[1]),
    _lora("layers-pattern", "gpt2", "bloom", layers_to_transform=1, layers_pattern="h"),
    _lora("head", "llama", modules_to_save=["lm_head"]),
    _lora("bias-of-targets", "gpt2", "bloom", "bert", bias="lora_only"),
    _lora("bias-of-all", "gpt2", "bloom", "bert", bias="all"),
    _lora("own-bias", "gpt2", "bert", lora_bias=True),
    _lora("gaussian", "llama", init_lora_weights="gaussian"),
    _lora("pissa", "llama", "gpt2", init_lora_weights="pissa"),
    _lora("olora", "llama", init_lora_weights="olora"),  # on GPT-2 PEFT makes an A of no use
    _lora("embedding", "llama", target_modules=["embed_tokens", "q_proj"]),
    _lora("token-rows", "llama", "gpt2", trainable_token_indices=[3, 5, 40]),
    _lora("named-token-rows", "bert", trainable_token_indices={"word_embeddings": [7, 3]}),
    _lora("tied-embedding", "gpt2", target_modules=["wte", "c_attn"]),
    _lora("tied-head", "bloom", modules_to_save=["lm_head"]),
    _lora("transposed", "gpt2", fan_in_fan_out=True),
    _lora("dora-rslora", "gpt2", use_dora=True, use_rslora=True),
    Case("ia3", "IA3Config", models=(*FIVE, *WITH_HEADS)),
    Case("ia3-attention", "IA3Config", {"feedforward_modules": []}, ("llama", "gpt2")),
]
_PAIRS = [(case, name) for case in CASES for name in case.models]


def _each(pairs: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    ids = [f"{case.name}-{name}" for case, name in pairs]
    return pytest.mark.parametrize(("case", "name"), pairs, ids=ids)


each_pair = _each(_PAIRS)
each_saved_pair = _each([*_PAIRS, (LSTM, "t5")])
