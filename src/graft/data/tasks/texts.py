"""CAUSAL_LM: learn every token of a text, in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graft.data.config import DataConfig
from graft.data.formats import read_text
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, causal_example
from graft.data.template import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Texts"]


class Texts(Task):
    """Learn every token of a text, in blocks."""

    parts_rows: ClassVar[bool] = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        self._encoder = Encoder(tokenizer, None)

    def read(self, row: Row) -> str:
        return read_text(row)

    def encode(self, items: list[str]) -> list[list[Example | None]]:
        return [
            [causal_example(block, self.limit) for block in blocks] or [None]
            for blocks in self._encoder.encode_texts(items, self.limit)
        ]
