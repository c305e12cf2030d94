"""A base model with an adapter, ready to be asked.

What lies beside the adapter decides how a prompt is rendered: the chat template of its tokenizer,
or, where that has none, the text as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.auto import AutoPeftModel
from graft.config import PeftConfig, TaskType
from graft.data.formats import Message
from graft.data.rendering import Tools
from graft.data.spans import Reading, best_span, read_window, unanswered
from graft.data.tasks.questions import Window, windows
from graft.data.tasks.tags import encode_words
from graft.data.tasks.task import require_offsets
from graft.data.template import Encoder, render_prompt
from graft.download import adapter_folder
from graft.errors import ConfigError, DataError
from graft.hub import load_tokenizer, positions_of
from graft.inference.sampling import Sampling
from graft.inference.streaming import TextPieces, decoded
from graft.training.precision import base_in_bf16

__all__ = ["GENERATES", "Answer", "Extract", "Predictor"]

GENERATES = (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)
_WINDOW = 1024  # most tokens of a text with a question that are read at a time
Prompt = str | list[Message]


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt.

    Attributes:
        text: The answer.
        ids: Its tokens, without the one that ends it.
        finished: Whether the model ended it; otherwise it was cut to the length allowed.
    """

    text: str
    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Extract:
    """An answer that stands in a text.

    Attributes:
        text: The answer; empty where the text has none.
        start: The character of the text at which it begins; None where it has none.
        probability: Of this answer, or of there being none.
    """

    text: str
    start: int | None
    probability: float


class Predictor:
    """A base model with an adapter, ready to be asked.

    Attributes:
        model: The base model with the adapter, in evaluation mode.
        tokenizer: The one that lies beside the adapter, or the base model's.
        task_type: What the adapter is for.
        chat_template: What renders prompts; None feeds texts as they stand.
        stop_ids: The tokens that end an answer.
    """

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, task_type: TaskType
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.task_type = task_type
        templated = task_type is TaskType.CAUSAL_LM and tokenizer.chat_template is not None
        self.chat_template = tokenizer.get_chat_template() if templated else None
        self.stop_ids = _stop_ids(self._base, tokenizer, self.chat_template)

    @classmethod
    def load(
        cls,
        source: str | Path,
        base_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """The adapter at `source`, on its base model.

        Args:
            source: Folder of the adapter, or its id on a hub.
            base_model: The base model, where the adapter's name for it does not lead there.
            dtype: Of the base model; None takes that of its files, but float32 on a CPU that gains
                nothing from bfloat16.
            device: None takes an accelerator where there is one.

        Raises:
            ConfigError: No such adapter or base model, or an adapter for what cannot be asked.
            CheckpointError: An adapter that is broken or does not fit.
        """
        folder = adapter_folder(source)
        config = PeftConfig.from_pretrained(folder)
        device = device or torch.accelerator.current_accelerator() or torch.device("cpu")
        model = AutoPeftModel.from_pretrained(folder, base_model=base_model, dtype=dtype)
        quantised = getattr(model.base_model, "hf_quantizer", None) is not None
        if dtype is None and device.type == "cpu" and not quantised:
            model.base_model.to(_on_cpu(model.base_model))
        assert config.task_type is not None  # AutoPeftModel asks for it
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(str(folder))
        else:
            revision = None if base_model else config.revision
            tokenizer = load_tokenizer(base_model or str(config.base_model_name_or_path), revision)
        return cls(model.to(device), tokenizer, config.task_type)

    @property
    def _base(self) -> Any:
        return self.model.base_model

    @property
    def about(self) -> str:
        """The method, the base model and where it is, in a few words."""
        kind = str(self.model.active_peft_config.peft_type)
        dtype = str(self._base.dtype).removeprefix("torch.")
        return f"{kind} on {self._base.name_or_path} ({dtype}, {self._base.device})"

    def prompt_ids(self, prompt: Prompt, tools: Tools | None = None) -> list[int]:
        """What the model reads of `prompt`: the ids that came before the answer in training.

        Args:
            prompt: A text, or turns.
            tools: What the answer may call, where the chat template has a place for it.

        Raises:
            ConfigError: An adapter that generates nothing.
            DataError: A prompt that the chat template refuses, or one without any tokens.
        """
        if self.task_type not in GENERATES:
            raise ConfigError(f"An adapter for {self.task_type} generates no text.")
        ids = render_prompt(self.tokenizer, prompt, self.chat_template, self.task_type, tools)
        if not ids:
            raise DataError("The prompt has no tokens: there is nothing to go on from.")
        return ids

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        batch_size: int = 8,
        tools: Tools | None = None,
    ) -> list[Answer]:
        """The answer to each prompt.

        Args:
            prompts: Texts, or turns (dicts with `role` and `content`); rendered as in training.
            sampling: None takes the likeliest tokens.
            batch_size: Prompts answered at a time.
            tools: What the answers may call, where the chat template has a place for it.

        Raises:
            ConfigError: An adapter that generates nothing.
            DataError: A prompt that the chat template refuses, or that leaves no room to answer.
        """
        rows = [self.prompt_ids(prompt, tools) for prompt in prompts]
        return self.complete(rows, sampling or Sampling(), batch_size)

    def complete(
        self, rows: Sequence[list[int]], sampling: Sampling, batch_size: int = 8
    ) -> list[Answer]:
        """Like `generate`, of prompts that are ids already."""
        answers: list[Answer] = []
        for at in range(0, len(rows), batch_size):
            answers += self._complete(rows[at : at + batch_size], sampling)
        return answers

    def stream(
        self, prompt: Prompt, on_text: Callable[[str], None], sampling: Sampling | None = None
    ) -> Answer:
        """Like `generate` of one prompt; `on_text` gets each piece of the answer as it is there."""
        streamer = TextPieces(self.tokenizer, self.stop_ids, on_text)
        (answer,) = self._complete([self.prompt_ids(prompt)], sampling or Sampling(), streamer)
        return answer

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, float]]:
        """The probability of each label, for each text or pair of texts.

        Raises:
            ConfigError: An adapter that is no classifier.
        """
        if self.task_type is not TaskType.SEQ_CLS:
            raise ConfigError(f"An adapter for {self.task_type} names no classes.")
        names = self._base.config.id2label
        out = []
        for text in texts:
            inputs = self._class_inputs(*([text] if isinstance(text, str) else text))
            with torch.no_grad():
                chances = self.model(**inputs).logits[0].float().softmax(-1)  # [labels]
            out.append({names[index]: chance for index, chance in enumerate(chances.tolist())})
        return out

    def tag(self, rows: Sequence[Sequence[str]]) -> list[list[str | None]]:
        """The tag of each word, for each row of words.

        None for a word of which the tokenizer leaves nothing.

        Raises:
            ConfigError: An adapter that tags no words.
            DataError: A row that is longer than the base model can read.
        """
        if self.task_type is not TaskType.TOKEN_CLS:
            raise ConfigError(f"An adapter for {self.task_type} tags no words.")
        require_offsets(self.tokenizer, "Tags of words")
        names = self._base.config.id2label
        out: list[list[str | None]] = []
        for words in encode_words(self.tokenizer, [list(row) for row in rows], self._positions):
            if words.lost:
                raise DataError(
                    f"A row of {len(words.first):,} words has more tokens than the base model "
                    f"reads ({self._positions:,}): give it in parts."
                )
            with torch.no_grad():
                said = self.model(**self._row(words.columns)).logits[0].argmax(-1).tolist()  # [T]
            out.append([None if at is None else names[said[at]] for at in words.first])
        return out

    def extract(self, pairs: Sequence[tuple[str, str]]) -> list[Extract]:
        """The answer to each question, out of the text beside it.

        Args:
            pairs: Question and text; long texts are read in windows, as in training.

        Raises:
            ConfigError: An adapter that finds no answers in texts.
            DataError: A question that leaves no room for the text.
        """
        if self.task_type is not TaskType.QUESTION_ANS:
            raise ConfigError(f"An adapter for {self.task_type} finds no answers in texts.")
        require_offsets(self.tokenizer, "Answers in a text")
        limit = min(self._positions, _WINDOW)
        out: list[Extract] = []
        for row, (question, text) in zip(
            windows(self.tokenizer, list(pairs), limit), pairs, strict=True
        ):
            if not row:
                raise DataError(
                    f"There is nothing to read for the question {question[:60]!r}: it takes half "
                    f"of the {limit:,} tokens that are read at a time, or the text is empty."
                )
            out.append(self._extract(row, text))
        return out

    def _extract(self, row: list[Window], text: str) -> Extract:
        readings: list[Reading] = []
        for window in row:
            with torch.no_grad():
                said = self.model(**self._row(window.columns))
            place = slice(window.start, window.stop)
            starts, ends = said.start_logits[0], said.end_logits[0]  # [T]
            readings.append(read_window(starts, ends, place, window.nowhere, window.at))
        span = best_span(readings)
        if span is None:
            return Extract("", None, unanswered(readings))
        offsets = {w.at + i: place for w in row for i, place in enumerate(w.offsets)}
        start, stop = offsets[span.first][0], offsets[span.last][1]
        chance = max(reading.chance for reading in readings)
        found = text[start:stop]
        return Extract(found.strip(), start + len(found) - len(found.lstrip()), chance)

    def _row(self, columns: dict[str, list[int]]) -> dict[str, Tensor]:
        """One row as a batch: [1, T] each."""
        device = self._base.device
        inputs = {name: torch.tensor([ids], device=device) for name, ids in columns.items()}
        return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}

    def _class_inputs(self, text: str, pair: str | None = None) -> dict[str, Tensor]:
        """One row, with the columns of training: [1, T] each."""
        given = self.tokenizer(
            text, pair, truncation=True, max_length=self._positions, return_tensors="pt"
        )
        columns = ("input_ids", "attention_mask", "token_type_ids")
        return {name: given[name].to(self._base.device) for name in columns if name in given}

    @property
    def _positions(self) -> int:
        """Most tokens of text that the base model has positions for; virtual ones take some."""
        return positions_of(self._base.config, self.tokenizer) - self._virtual_tokens

    @property
    def _virtual_tokens(self) -> int:
        if not self.model.active_adapters:
            return 0
        return getattr(self.model.active_peft_config, "num_virtual_tokens", None) or 0

    def _complete(
        self, rows: Sequence[list[int]], sampling: Sampling, streamer: TextPieces | None = None
    ) -> list[Answer]:
        longest = max(map(len, rows))
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad = next(token for token in pads if isinstance(token, int))
        causal = self.task_type is TaskType.CAUSAL_LM
        ids = torch.full((len(rows), longest), pad)  # [B, T]
        mask = torch.zeros_like(ids)
        for line, seen, row in zip(ids, mask, rows, strict=True):
            # A decoder goes on from its last column; an encoder counts positions from its first.
            place = slice(longest - len(row), longest) if causal else slice(0, len(row))
            line[place], seen[place] = torch.tensor(row), 1
        config = GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, self._room(longest)),
            eos_token_id=self.stop_ids or None,
            pad_token_id=pad,
            **sampling.settings,
        )
        device = self._base.device
        out = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            streamer=streamer,
        )
        return [self._answer(row) for row in out[:, longest if causal else 1 :].tolist()]

    def _room(self, length: int) -> int:
        """Tokens that can follow a prompt of `length` tokens."""
        causal = self.task_type is TaskType.CAUSAL_LM
        room = self._positions - (length if causal else 1)
        if room < 1 or length > self._positions:
            virtual = self._virtual_tokens
            more = f" beside {virtual:,} virtual ones" if virtual else ""
            raise DataError(
                f"The prompt has {length:,} tokens, and the base model reads at most "
                f"{self._positions:,}{more}: there is no room to answer."
            )
        return room

    def _answer(self, row: list[int]) -> Answer:
        ids = list(takewhile(lambda token: token not in self.stop_ids, row))
        return Answer(decoded(self.tokenizer, ids), ids, len(ids) < len(row))


def _stop_ids(
    base: Any, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> list[int]:
    """What ends an answer: the base model's end tokens, and the one that training taught."""
    config = getattr(base, "generation_config", None)
    own = None if config is None else config.eos_token_id
    ends = own if isinstance(own, list) else [own]
    ends = [*ends, tokenizer.eos_token_id]
    if chat_template is not None:
        encoder = Encoder(tokenizer, chat_template)
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
        with suppress(DataError):  # a template that cannot be trained on: the others remain
            ends.append(encoder.encode(encoder.conversation(turns))[-1].input_ids[-1])
    return sorted({token for token in ends if isinstance(token, int)})


def _on_cpu(base: Any) -> torch.dtype:
    """In what to hold `base` on a CPU: half precision is slow there, or fast."""
    halves = base.dtype == torch.bfloat16 and base_in_bf16(None, base.config, "cpu")[0]
    return torch.bfloat16 if halves else torch.float32
