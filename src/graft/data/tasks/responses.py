"""CAUSAL_LM: learn the responses of conversations, or completions of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.data.config import DataConfig
from graft.data.formats import read_messages, read_pair, read_tools
from graft.data.rendering import Piece, pair
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, causal_example
from graft.data.template import Encoder, find_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Responses"]


class Responses(Task):
    """Learn the responses of conversations, or completions of prompts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        # Pairs need no turns: where the tokenizer has no template they are joined as they are.
        pairs = format_name in ("prompt_completion", "seq2seq")
        if not pairs or tokenizer.chat_template is not None:
            self.chat_template = find_chat_template(tokenizer)
        self._encoder = Encoder(tokenizer, self.chat_template)
        self._learn_all = config.train_on == "all"

    def read(self, row: Row) -> list[list[Piece]]:
        if self.chat_template is None:
            return [pair(*read_pair(row, self.format))]
        return self._encoder.conversation(read_messages(row, self.format), read_tools(row))

    def encode(self, items: list[list[list[Piece]]]) -> list[list[Example | None]]:
        flat = [pieces for item in items for pieces in item]
        encoded = iter(self._encoder.encode(flat, self._learn_all))
        return [[causal_example(next(encoded), self.limit) for _ in item] for item in items]
