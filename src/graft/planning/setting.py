"""What is planned: one optimizer step of one or several adapters, or of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedConfig

from graft.config import PeftConfig, TaskType

__all__ = ["Row", "Setting"]


@dataclass(frozen=True)
class Row:
    """A row of a batch, by its sizes.

    Attributes:
        tokens: Tokens that it is of, without padding and virtual tokens; of an encoder-decoder the
            encoder's.
        labels: Tokens that are learned: all that have a label for CAUSAL_LM (never the first) and
            TOKEN_CLS, the target's for SEQ_2_SEQ_LM, 1 for what has one label a row.
        adapter: Whose row it is; None where there is one adapter, or none.
    """

    tokens: int
    labels: int
    adapter: str | None = None


@dataclass(frozen=True)
class Setting:
    """One step.

    Attributes:
        config: Of the base model; weights are not needed.
        task_type: Decides the head.
        batches: The step's forward passes, each with its rows. Several are accumulated; a pass may
            have rows of several adapters.
        adapters: Their configs by name; none: the whole base model is trained.
        dtype: Of the base model.
        quantised: Bits of the base model's linear layers, held quantised.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        num_labels: Classes of a new head; None: as the config says.
        device: Where it is to run, "cpu", "cuda" or "mps": rows are counted padded but on
            CPUs, and memory is handed out in other pieces.
    """

    config: PreTrainedConfig
    task_type: TaskType
    batches: tuple[tuple[Row, ...], ...]
    adapters: Mapping[str, PeftConfig] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    quantised: Literal[4, 8] | None = None
    gradient_checkpointing: bool = False
    num_labels: int | None = None
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """Tokens of the step that are no padding, as training counts them."""
        own = sum(row.tokens for batch in self.batches for row in batch)
        if self.task_type is not TaskType.SEQ_2_SEQ_LM:
            return own
        return own + sum(row.labels for batch in self.batches for row in batch)
