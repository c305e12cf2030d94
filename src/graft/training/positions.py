"""How long rows may be: the base model's positions, less those that virtual tokens take.

Training, `graft data` and `graft init` ask here, so that what is checked and shown is what is
trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.errors import ConfigError
from graft.hub import load_config
from graft.training.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["positions_of", "room_for_text", "within"]


def positions_of(base: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the base model with this config can read."""
    own = getattr(base.get_text_config(decoder=True), "max_position_embeddings", None)
    # XLNet's is -1: it has no end.
    return min(tokenizer.model_max_length, own) if own and own > 0 else tokenizer.model_max_length


def room_for_text(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of a row the base model can read, beside the adapter's virtual tokens.

    Raises:
        ConfigError: They leave no room, or there is no such model.
        CheckpointError: The model has no config.
    """
    positions = positions_of(load_config(config.base_model, config.revision), tokenizer)
    virtual = getattr(config.adapter.peft_config(config.task_type), "num_virtual_tokens", 0)
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
