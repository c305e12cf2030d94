"""How long rows may be: the base model's positions, less those that virtual tokens take.

Training and `graft data` ask here, so that what is checked and shown is what is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.errors import ConfigError
from graft.hub import load_config, positions_of
from graft.training.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["room_for_text", "within"]


def room_for_text(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of a row the base model can read, beside virtual tokens.

    Raises:
        ConfigError: They leave no room, or there is no such model.
        CheckpointError: The model has no config.
    """
    positions = positions_of(load_config(config.base_model, config.revision), tokenizer)
    virtual = max(
        getattr(adapter.peft_config(config.task_type), "num_virtual_tokens", 0)
        for adapter in config.adapters.values()
    )
    if positions - virtual < 2:
        raise ConfigError(
            f"{virtual:,} virtual tokens leave no room for text: {config.base_model} has "
            f"{positions:,} positions. Lower num_virtual_tokens."
        )
    return positions - virtual


def within(config: RunConfig, room: int) -> RunConfig:
    """The run with rows cut to `room` tokens, where it would let them be longer."""
    if config.data.max_length <= room:
        return config
    data = config.data.model_copy(update={"max_length": room})
    return config.model_copy(update={"data": data})
