"""How the tokens of an answer are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graft.errors import ConfigError

__all__ = ["Sampling"]

# What a base model's generation config may ask for and a plain choice of tokens leaves out.
_PLAIN: dict[str, Any] = {
    "num_beams": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "top_k": 0,
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and how many.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn from
            `softmax(logits / temperature)`.
        top_p: Draw from the likeliest tokens only that together have this probability.

    Raises:
        ConfigError: For a value that cannot work.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.top_p < 1 and not self.temperature:
            raise ConfigError("top_p needs a temperature above 0: without, nothing is drawn.")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of transformers' `GenerationConfig` that this means."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {**_PLAIN, **(drawn if self.temperature else {"do_sample": False})}
