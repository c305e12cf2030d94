"""P-Tuning: virtual tokens made by a small encoder that is trained with them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor, nn

from graft.config import PeftType, as_enum
from graft.errors import ConfigError
from graft.methods.base import BaseShape, PromptAdapter
from graft.methods.prompt_tuning import PromptLearningConfig

__all__ = [
    "PTuning",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
]


class PromptEncoderReparameterizationType(StrEnum):
    """The kinds of encoder."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """P-Tuning: the model reads `[f(P); E(x)]` with the table P and the encoder f trained.

    Liu et al., "GPT Understands, Too", section 3.2 (LSTM, then MLP); the plain MLP as in PEFT.

    Attributes:
        encoder_reparameterization_type: MLP: Linear-ReLU-Linear-ReLU-Linear. LSTM: two-way LSTM,
            then Linear-ReLU-Linear.
        encoder_hidden_size: Width of the encoder; D where it is None.
        encoder_num_layers: Layers of the LSTM. The MLP has three linears in any case.
        encoder_dropout: Dropout between layers of the LSTM, and after each ReLU of the MLP.
    """

    peft_type: ClassVar[PeftType] = PeftType.P_TUNING

    encoder_reparameterization_type: PromptEncoderReparameterizationType = (
        PromptEncoderReparameterizationType.MLP
    )
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder_reparameterization_type = as_enum(
            PromptEncoderReparameterizationType,
            self.encoder_reparameterization_type,
            "encoder_reparameterization_type",
        )
        if self.encoder_hidden_size is not None:
            self.require("encoder_hidden_size", int, 1)
        self.require("encoder_num_layers", int, 1)
        self.require("encoder_dropout", float, 0)
        if self.encoder_dropout >= 1:
            raise ConfigError(f"encoder_dropout must be below 1, not {self.encoder_dropout!r}.")


class PromptEncoder(nn.Module):
    """A table [N, D] and the encoder over it; parameters are named as in PEFT."""

    def __init__(self, config: PromptEncoderConfig, base: BaseShape) -> None:
        super().__init__()
        size, width = base.hidden, config.encoder_hidden_size or base.hidden
        dropout, depth = config.encoder_dropout, config.encoder_num_layers
        self.embedding = nn.Embedding(config.num_virtual_tokens or 0, size)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder_reparameterization_type is PromptEncoderReparameterizationType.LSTM:
            self.lstm_head = nn.LSTM(
                size,
                width,
                num_layers=depth,
                dropout=dropout if depth > 1 else 0.0,  # torch drops between layers only
                bidirectional=True,
                batch_first=True,
            )
            sizes = (2 * width, 2 * width, size)
        else:
            sizes = (size, width, width, size)
        self.mlp_head = nn.Sequential()
        for index, (low, high) in enumerate(itertools.pairwise(sizes)):
            if index:
                self.mlp_head.append(nn.ReLU())
            self.mlp_head.append(nn.Linear(low, high))
        self.dropout = nn.Dropout(0.0 if self.lstm_head is not None else dropout)
        self.to(device=base.device, dtype=base.dtype)

    def forward(self) -> Tensor:
        """The virtual tokens, [N, D]."""
        hidden = self.embedding.weight
        if self.lstm_head is not None:
            hidden = self.lstm_head(hidden[None])[0][0]
        for layer in self.mlp_head:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                hidden = self.dropout(hidden)
        return hidden


class PTuning(PromptAdapter):
    """Virtual tokens from a `PromptEncoder`."""

    config_class = PromptEncoderConfig
    learning_rate = 1e-3

    def __init__(self, config: PromptEncoderConfig, base: BaseShape) -> None:
        super().__init__(config, base)
        self.encoder = PromptEncoder(config, base)
