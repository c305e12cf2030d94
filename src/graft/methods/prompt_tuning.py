"""Prompt-Tuning: virtual tokens in front of the text, learned as input embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import nn

from graft.config import PeftConfig, PeftType, as_enum
from graft.errors import ConfigError
from graft.methods.base import BaseShape, PromptAdapter

__all__ = ["PromptLearningConfig", "PromptTuning", "PromptTuningConfig", "PromptTuningInit"]


class PromptTuningInit(StrEnum):
    """What virtual tokens start from."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass(kw_only=True)
class PromptLearningConfig(PeftConfig):
    """The fields of all methods with virtual tokens.

    Attributes:
        num_virtual_tokens: N, at least 1.
        token_dim: Size of one token; filled in from the base model, as are the next three.
        num_transformer_submodules: 2 for an encoder-decoder, else 1.
        num_attention_heads: Attention heads (key-value heads for a prefix).
        num_layers: Layers.
    """

    is_prompt_learning: ClassVar[bool] = True

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_virtual_tokens is None:
            raise ConfigError(
                f"{type(self).__name__}: num_virtual_tokens is missing; it must be an int of at "
                "least 1, such as 20."
            )
        self.require("num_virtual_tokens", int, 1)


@dataclass(kw_only=True)
class PromptTuningConfig(PromptLearningConfig):
    """Prompt-Tuning: the model reads `[P; E(x)]` with P [N, D] trained.

    Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2.

    Attributes:
        prompt_tuning_init: SAMPLE_VOCAB: random rows of the input embedding. TEXT: the rows of
            `prompt_tuning_init_text`, cut or repeated. RANDOM: normal numbers with the deviation
            of the input embedding.
        prompt_tuning_init_text: For TEXT.
        tokenizer_name_or_path: For TEXT; the base model's own where it is None.
        tokenizer_kwargs: For TEXT, handed to the tokenizer.
    """

    peft_type: ClassVar[PeftType] = PeftType.PROMPT_TUNING

    prompt_tuning_init: PromptTuningInit = PromptTuningInit.SAMPLE_VOCAB
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompt_tuning_init = as_enum(
            PromptTuningInit, self.prompt_tuning_init, "prompt_tuning_init"
        )
        if self.prompt_tuning_init is PromptTuningInit.TEXT and not self.prompt_tuning_init_text:
            raise ConfigError("prompt_tuning_init=TEXT needs prompt_tuning_init_text.")


class PromptTuning(PromptAdapter):
    """A table of N input embeddings."""

    config_class = PromptTuningConfig
    learning_rate = 1e-2

    def __init__(self, config: PromptTuningConfig, base: BaseShape) -> None:
        super().__init__(config, base)
        self.prompt_embeddings = nn.Parameter(_start(config, base).to(base.dtype))  # [N, D]


def _start(config: PromptTuningConfig, base: BaseShape) -> torch.Tensor:
    count = config.num_virtual_tokens or 0
    with torch.no_grad():
        if config.prompt_tuning_init is PromptTuningInit.TEXT and not config.inference_mode:
            return base.embed(base.text_ids(config.prompt_tuning_init_text or "", count)).clone()
        rows = base.embed(base.sampled_ids(count))
        if config.prompt_tuning_init is PromptTuningInit.RANDOM:
            return torch.randn_like(rows) * rows.std()
        return rows.clone()
