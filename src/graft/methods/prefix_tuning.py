"""Prefix-Tuning: virtual tokens as keys and values of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graft.config import PeftType
from graft.errors import ConfigError, did_you_mean
from graft.methods.base import BaseShape, PrefixAdapter
from graft.methods.prompt_tuning import PromptLearningConfig

__all__ = ["PrefixEncoder", "PrefixTuning", "PrefixTuningConfig"]

_STARTS = ("keys", "vocab", "text", "zero", "random")


@dataclass(kw_only=True)
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix-Tuning: every attention layer sees `[P_k; K]` and `[P_v; V]` with P trained.

    Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", eq. 3.

    Attributes:
        prefix_projection: Make the prefix by a two-layer MLP over a smaller table (eq. 3, the
            reparametrisation in section 4.3).
        encoder_hidden_size: Width of that MLP; the size of one layer's keys where it is None.
        init_weights: What the prefix starts from. "keys": the model's own keys of random tokens,
            and as values normal numbers of the deviation of theirs in each layer. "vocab": both
            of random tokens. "text": both of `init_text`. "zero": zeros. "random": normal numbers,
            as in PEFT. None: "keys", or with a projection "random".
        init_text: For "text".
        tokenizer_name_or_path: For "text"; the base model's own where it is None.
    """

    peft_type: ClassVar[PeftType] = PeftType.PREFIX_TUNING
    private_fields: ClassVar[frozenset[str]] = frozenset({"init_text", "tokenizer_name_or_path"})

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str | None = None
    init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_hidden_size is not None:
            self.require("encoder_hidden_size", int, 1)
        if self.init_weights is not None and self.init_weights not in _STARTS:
            hint = did_you_mean(str(self.init_weights), _STARTS)
            raise ConfigError(f"init_weights={self.init_weights!r} is not known.{hint}")
        if self.prefix_projection and self.init_weights in ("keys", "vocab", "text"):
            raise ConfigError(
                f"init_weights={self.init_weights!r} needs prefix_projection=False: "
                "a projection cannot be solved for given key-values."
            )
        if (self.init_weights == "text") != (self.init_text is not None):
            raise ConfigError('init_weights="text" and init_text go together.')

    def to_dict(self) -> dict[str, object]:
        raw = super().to_dict()
        return {**raw, "init_weights": "zero" if self.init_weights == "zero" else None}


class PrefixEncoder(nn.Module):
    """A table and an MLP from it to all layers' keys and values; named as in PEFT."""

    def __init__(self, config: PrefixTuningConfig, base: BaseShape) -> None:
        super().__init__()
        size = base.num_heads * base.head_dim
        width = config.encoder_hidden_size or size
        self.embedding = nn.Embedding(config.num_virtual_tokens or 0, size)
        self.transform = nn.Sequential(
            nn.Linear(size, width), nn.Tanh(), nn.Linear(width, base.num_layers * 2 * size)
        )
        if config.init_weights == "zero":
            for parameter in self.transform[-1].parameters():
                nn.init.zeros_(parameter)
        self.to(device=base.device, dtype=base.dtype)

    def forward(self) -> Tensor:
        """The prefix, [N, L*2*H*K]."""
        return self.transform(self.embedding.weight)


class PrefixTuning(PrefixAdapter):
    """Keys and values for every layer, from a table or a `PrefixEncoder`."""

    config_class = PrefixTuningConfig
    learning_rate = 1e-2

    def __init__(self, config: PrefixTuningConfig, base: BaseShape) -> None:
        super().__init__(config, base)
        if config.prefix_projection:
            self.encoder = PrefixEncoder(config, base)
            return
        shape = (self.num_virtual_tokens, self.width)
        zeros = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self.prompt_embeddings = nn.Parameter(zeros)
        start = config.init_weights or "keys"
        if config.inference_mode or start == "zero":
            return
        if start == "random":
            nn.init.normal_(self.prompt_embeddings)
        else:
            count = self.num_virtual_tokens
            ids = (
                base.text_ids(config.init_text or "", count)
                if start == "text"
                else base.sampled_ids(count)
            )
            key_values = base.key_values(ids)
            self.set_key_values(_with_new_values(key_values) if start == "keys" else key_values)


def _with_new_values(key_values: Tensor) -> Tensor:
    """The keys of [L, 2, H, N, K], with normal numbers as values.

    What a prefix says is to be learned: that of random words, which are alike in much, takes long
    to be unlearned. Where one looks at it is not: keys no model has seen are found by no query.
    """
    keys, values = key_values.unbind(1)
    deviation = values.flatten(1).std(1)[:, None, None, None]
    return torch.stack([keys, torch.randn_like(values) * deviation], 1)
