"""Text from tokens, all at once or as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

__all__ = ["TextPieces", "decoded"]


class TextPieces(BaseStreamer):
    """Hands on the text of one row of tokens as soon as it is certain.

    The pieces put together are the text of all tokens: transformers' own streamer decodes line by
    line, and tokenizers that drop a leading space then drop one in each line.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        on_text: Callable[[str], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._on_text = on_text
        self._prompt_is_past = False
        self._ids: list[int] = []
        self._told = ""

    def put(self, value: Tensor) -> None:
        if not self._prompt_is_past:
            self._prompt_is_past = True
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self._stop_ids]
        text = decoded(self._tokenizer, self._ids)
        if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
            self._tell(text)

    def end(self) -> None:
        self._tell(decoded(self._tokenizer, self._ids))

    def _tell(self, text: str) -> None:
        if len(text) > len(self._told):
            self._on_text(text[len(self._told) :])
            self._told = text


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
