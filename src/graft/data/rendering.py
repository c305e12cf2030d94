"""Turns -> text, cut into pieces at the ends of its prompts: prompt, response, prompt, response.

Each cut is where `generate` begins to answer, and it is checked that the rendered response goes on
from there. Where the template marks what is generated (`{% generation %}`), the marks come along.
Tokens are left to `template`, reading of rows to `formats`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from graft.data.formats import Message
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Piece", "Renderer", "Tools", "end_tokens", "pair"]

Tools = list[dict[str, Any]]
Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it


class Piece(NamedTuple):
    """A part of a row that is tokenised after the part before, never across the cut.

    Attributes:
        text: The text.
        kind: `response` is learned, `prompt` is what leads to it, `context` is a response that is
            not to be learned.
        marked: Where in a response the template's generation blocks are; None without any: then
            all of it is learned, up to its end.
    """

    text: str
    kind: Literal["prompt", "response", "context"] = "prompt"
    marked: tuple[Span, ...] | None = None


def pair(prompt: str, completion: str) -> list[Piece]:
    """The row of a prompt and the completion to learn, as they stand."""
    return [Piece(prompt), Piece(completion, "response")]


def end_tokens(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> dict[str, int]:
    """What may end a turn: a special token, or an added one that the template writes.

    Not the one for unknown characters.
    """
    ids = {
        token
        for token, entry in tokenizer.added_tokens_decoder.items()
        if entry.special or str(entry) in (chat_template or "")
    }
    ids |= {token for token in tokenizer.all_special_ids if isinstance(token, int)}
    unknown, eos = tokenizer.unk_token_id, tokenizer.eos_token_id
    return {
        str(tokenizer.convert_ids_to_tokens(token)): token
        for token in ids
        if token != unknown or token == eos
    }


class Renderer:
    """A chat template at work.

    Args:
        tokenizer: Whose special tokens the template writes.
        chat_template: Jinja source.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        # Marks are in characters; slow tokenizers do not say which of them a token stands for.
        self._marks = tokenizer.is_fast and _GENERATION.search(chat_template) is not None
        self._ends = tuple(end_tokens(tokenizer, chat_template))
        self._heard: set[str] = set()  # what the template was seen not to pass over

    def conversation(
        self, messages: list[Message], tools: Tools | None = None
    ) -> list[list[Piece]]:
        """The rows of pieces of `messages`, each up to its last response to learn.

        One row, unless the template rewrites earlier turns (as thinking models' do, which drop
        past thoughts) or writes no end of a turn: then a turn whose prompt does not continue the
        text so far begins a row of its own, so that each response is learned once, after what it
        will see, and ends.

        Args:
            messages: The turns; responses with `loss: false` are not learned.
            tools: What the template's `tools` is to be.

        Raises:
            DataError: The template refuses the messages, passes over something in them, or its
                prompt for a response is not how the rendered response begins.
        """
        learned = [message.get("loss") is not False for message in messages]
        messages = [_without(message, "loss") for message in messages]
        self._check_heard(messages, tools)
        rows = self._rows(messages, learned, tools)
        for row in rows:
            while row and row[-1].kind != "response":
                row.pop()
        return [row for row in rows if row]

    def prompt(self, messages: list[Message], tools: Tools | None = None) -> list[Piece]:
        """The pieces in front of the next response, as in training.

        Raises:
            DataError: The template refuses the messages.
        """
        messages = [_without(message, "loss") for message in messages]
        try:
            rows = self._rows(messages, [False] * len(messages), tools)
        except DataError:
            rows = []  # turns that could not be learned from can still be answered
        self._extend(rows, self._render(messages, tools, True)[0])
        return rows[-1]

    def _rows(
        self, messages: list[Message], learned: list[bool], tools: Tools | None
    ) -> list[list[Piece]]:
        rows: list[list[Piece]] = []
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        whole: tuple[str, list[Span] | None] = ("", None)
        if self._marks and turns:
            whole = self._render(messages[: turns[-1] + 1], tools, False)
        for index in turns:
            prompt, _ = self._render(messages[:index], tools, True)
            answered, marked = self._render(messages[: index + 1], tools, False)
            cut = len(prompt)
            if not answered.startswith(prompt):
                if not learned[index]:
                    continue  # the next prompt has it
                raise DataError(
                    f"the chat template renders turn {index + 1} (assistant) otherwise than its "
                    f"prompt announces: the prompt ends {prompt[-40:]!r}, the turn has "
                    f"{answered[max(0, cut - 40) :][:40]!r} there. Give it what the prompt allows, "
                    "mark it loss: false, or take a template whose prompt fits."
                )
            self._extend(rows, prompt)
            if marked is not None:
                # The whole conversation says what is marked, as far as it goes on from here. What
                # the prompt has already is never generated.
                spans = whole[1] if whole[0].startswith(answered) else marked
                marked = tuple(
                    (max(start - cut, 0), min(end, len(answered)) - cut)
                    for start, end in spans or ()
                    if start < len(answered) and end > cut
                )
            kind = "response" if learned[index] else "context"
            rows[-1].append(Piece(answered[cut:], kind, marked))
        return rows

    def _extend(self, rows: list[list[Piece]], prompt: str) -> None:
        """Add `prompt` to the last row where it continues a turn that ended; else begin a row."""
        so_far = "".join(piece.text for piece in rows[-1]) if rows else ""
        ended = so_far.rstrip().endswith(self._ends)
        if ended and len(prompt) > len(so_far) and prompt.startswith(so_far):
            rows[-1].append(Piece(prompt[len(so_far) :]))
        else:
            rows.append([Piece(prompt)])

    def _check_heard(self, messages: list[Message], tools: Tools | None) -> None:
        """Refuse what the template passes over: the model would learn to answer without it.

        Each kind of thing is looked at once, where it first occurs.
        """
        without: dict[str, tuple[list[Message], Tools | None]] = {}
        if tools:
            without["`tools`"] = (messages, None)
        for index, message in enumerate(messages):
            before, after = messages[:index], messages[index + 1 :]
            if message["role"] in ("system", "tool") and message["content"].strip():
                without.setdefault(f"{message['role']} turns", ([*before, *after], tools))
            if message.get("tool_calls"):
                bare = _without(message, "tool_calls")
                without.setdefault("`tool_calls`", ([*before, bare, *after], tools))
        unknown = {what: given for what, given in without.items() if what not in self._heard}
        whole = self._render(messages, tools, False) if unknown else None
        for what, (fewer, fewer_tools) in unknown.items():
            try:
                heard = self._render(fewer, fewer_tools, False) != whole
            except DataError:
                heard = True  # it cannot do without
            if not heard:
                raise DataError(
                    f"the chat template passes over {what}: the text is the same without. Take a "
                    "model whose template has a place for them, or remove them."
                )
            self._heard.add(what)

    def _render(
        self, messages: list[Message], tools: Tools | None, prompt: bool
    ) -> tuple[str, list[Span] | None]:
        """The text, and where in it the generation blocks are; None without such blocks."""
        options: dict[str, Any] = {
            "chat_template": self.chat_template,
            "tools": tools or None,
            "add_generation_prompt": prompt,
        }
        try:
            if prompt or not self._marks:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
                assert isinstance(text, str)
                return text, None
            options |= self.tokenizer.special_tokens_map
            # What apply_chat_template makes return_assistant_tokens_mask of.
            rendered: Any = render_jinja_template(
                [messages], return_assistant_tokens_mask=True, **options
            )
            (text,), (spans,) = rendered
            return text, spans
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(f"the chat template refuses the conversation: {error}.") from None


def _without(message: Message, key: str) -> Message:
    return {name: value for name, value in message.items() if name != key}
