"""A chat with an adapted model."""

from __future__ import annotations

from collections.abc import Callable

from graft.data.formats import Message
from graft.errors import ConfigError
from graft.inference.predictor import GENERATES, Answer, Predictor
from graft.inference.sampling import Sampling

__all__ = ["Conversation"]


class Conversation:
    """A chat: the turns so far, and what is said next.

    Without a chat template there are no turns, and each text is answered for itself.

    Attributes:
        predictor: Who answers.
        sampling: How.
        turns: What was said, the system's message first where there is one.
    """

    def __init__(
        self, predictor: Predictor, sampling: Sampling | None = None, system: str | None = None
    ) -> None:
        if predictor.task_type not in GENERATES:
            raise ConfigError(f"An adapter for {predictor.task_type} cannot chat.")
        if system is not None and predictor.chat_template is None:
            raise ConfigError(
                "The adapter was trained without a chat template, so there is no place for a "
                "system message."
            )
        self.predictor = predictor
        self.sampling = sampling or Sampling()
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.turns: list[Message] = list(self._opening)

    def say(self, text: str, on_text: Callable[[str], None]) -> Answer:
        """The answer to `text`, in pieces to `on_text` as it comes.

        An answer that is broken off (by Ctrl-C) counts as far as it came.
        """
        if self.predictor.chat_template is None:
            return self.predictor.stream(text, on_text, self.sampling)
        turns = [*self.turns, {"role": "user", "content": text}]
        heard: list[str] = []

        def listen(piece: str) -> None:
            heard.append(piece)
            on_text(piece)

        try:
            return self.predictor.stream(turns, listen, self.sampling)
        finally:
            if heard:
                self.turns = [*turns, {"role": "assistant", "content": "".join(heard)}]
