"""The model families of the suite: one tiny model with random weights each. A new one is one line.

All have two layers (two and two in an encoder-decoder), 32 numbers per token, four heads and 64
ids; nothing drops out, so that a forward in train mode repeats.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from graft.config import TaskType

__all__ = ["EOS", "FAMILIES", "PAD", "VOCAB", "Family"]

VOCAB, PAD, BOS, EOS = 64, 0, 1, 2

_AUTO = {
    TaskType.CAUSAL_LM: transformers.AutoModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    TaskType.SEQ_CLS: transformers.AutoModelForSequenceClassification,
    TaskType.TOKEN_CLS: transformers.AutoModelForTokenClassification,
    TaskType.QUESTION_ANS: transformers.AutoModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: transformers.AutoModel,
}
_SHARED = {
    "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        config_class: Name of its config in transformers.
        kind: "decoder", "encoder" or "encoder-decoder".
        settings: What its config needs beside, or instead of, what all share.
        needs_positions: Whether the base model itself is wrong on left-padded rows without them.
        shared: Cases that adapt a layer which all rows share there, so that rows cannot differ.
        no_cache: Tasks whose class has no key-value cache, so that a prefix is refused.
    """

    config_class: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    needs_positions: bool = False
    shared: tuple[str, ...] = ()
    no_cache: tuple[TaskType, ...] = ()

    @property
    def name(self) -> str:
        return self.config_class.removesuffix("Config")

    @property
    def runs_variants(self) -> bool:
        """Whether it is one of the first five, or has experts."""
        return self in FAMILIES[:5] or "num_local_experts" in self.settings

    @property
    def task(self) -> TaskType:
        """The task that the family is made for."""
        return {
            "decoder": TaskType.CAUSAL_LM,
            "encoder": TaskType.TOKEN_CLS,
            "encoder-decoder": TaskType.SEQ_2_SEQ_LM,
        }[self.kind]

    @property
    def generates(self) -> bool:
        return self.kind != "encoder"

    @property
    def tasks(self) -> list[TaskType]:
        """Every task for which transformers has a class."""
        other = {TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM} - {self.task}
        kind = getattr(transformers, self.config_class)
        return [t for t, auto in _AUTO.items() if t not in other and kind in auto._model_mapping]

    def model(self, task: TaskType | None = None) -> nn.Module:
        """A model of its own, always with the same weights, in eval mode."""
        return copy.deepcopy(self._made(task or self.task)).eval()

    def _made(self, task: TaskType) -> nn.Module:
        return _make(self.config_class, task, tuple(self.settings.items()))


@functools.cache
def _make(config_class: str, task: TaskType, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    torch.manual_seed(0)
    # Question answering has a number for the start and one for the end.
    labels = {"num_labels": 2} if task is TaskType.QUESTION_ANS else {}
    config = getattr(transformers, config_class)(**{**_SHARED, **dict(settings), **labels})
    model = _AUTO[task].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: zeros and ones hide faults
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


_GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
_EVERY = tuple(TaskType)

FAMILIES = [
    Family("LlamaConfig", "decoder", _GROUPED),
    Family(
        "GPT2Config",
        "decoder",
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        needs_positions=True,
    ),
    Family("BloomConfig", "decoder"),
    Family("BertConfig", "encoder", {"intermediate_size": 48, **_NO_DROPOUT}),
    Family(
        "T5Config",
        "encoder-decoder",
        {
            "num_decoder_layers": 2,
            "d_ff": 48,
            "d_kv": 8,
            "dropout_rate": 0.0,
            "decoder_start_token_id": PAD,
        },
        no_cache=(TaskType.TOKEN_CLS,),
    ),
    Family("Qwen3Config", "decoder", {"head_dim": 8, **_GROUPED}),
    Family("MistralConfig", "decoder", {"sliding_window": 5, **_GROUPED}),
    Family("Gemma2Config", "decoder", {"sliding_window": 5, "head_dim": 8, **_GROUPED}),
    Family("GPTNeoXConfig", "decoder", {"intermediate_size": 48}),
    Family("OPTConfig", "decoder", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    Family("MixtralConfig", "decoder", {"num_local_experts": 3, **_GROUPED}),
    Family("RobertaConfig", "encoder", {"intermediate_size": 48, **_NO_DROPOUT}),
    Family(
        "DebertaV2Config",
        "encoder",
        {
            "intermediate_size": 48,
            "relative_attention": True,
            "pos_att_type": "p2c|c2p",
            "pooler_dropout": 0.0,
            **_NO_DROPOUT,
        },
        shared=("BitFit", "Lora_all-linear"),  # the norm and projections of relative positions
        no_cache=_EVERY,
    ),
    Family(
        "DistilBertConfig",
        "encoder",
        {
            "hidden_dim": 48,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "qa_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
        no_cache=_EVERY,
    ),
    Family(
        "BartConfig",
        "encoder-decoder",
        {
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "dropout": 0.0,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": None,
        },
    ),
]
