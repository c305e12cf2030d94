"""Turns -> tokens, and which of them are learned. Training and inference share this code.

A conversation is rendered by the chat template (the tokenizer's own, or the plain one below) and
cut into pieces at the ends of its prompts: prompt, response, next prompt, next response, ... Each
piece is tokenised as the continuation of the piece before, never across the cut. So the tokens in
front of a response are exactly those that `render_prompt` gives to `generate`.

Reading rows is left to `formats`, length and batches to `prepare` and `collate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from graft.config import TaskType
from graft.data.formats import Message
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "PLAIN_TEMPLATE",
    "Encoder",
    "Tokens",
    "end_of_text",
    "find_chat_template",
    "render_prompt",
]

IGNORED = -100  # the label of a token that is not learned: cross entropy's `ignore_index`

# For tokenizers without a chat template. Plain words, as base models know them; the response
# begins after a line break, where tokenizers do not merge; nothing follows the end token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n\\n' }}"
    "{% if message.role == 'user' %}{{ '### Instruction:\\n' + message.content }}"
    "{% elif message.role == 'assistant' %}"
    "{{ '### Response:\\n' + message.content + eos_token }}"
    "{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)


class Tokens(NamedTuple):
    """One row: `input_ids`, and `labels` of the same length: the id, or `IGNORED`."""

    input_ids: list[int]
    labels: list[int]


def find_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template; else `PLAIN_TEMPLATE`, after the tokens that begin a text.

    Raises:
        DataError: There is neither a template nor an end token to end responses with.
    """
    if tokenizer.chat_template is not None:
        return tokenizer.get_chat_template()
    end_of_text(tokenizer)
    return "".join(tokenizer.convert_ids_to_tokens(_leading(tokenizer))) + PLAIN_TEMPLATE


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    chat_template: str | None,
    task_type: TaskType = TaskType.CAUSAL_LM,
) -> list[int]:
    """The ids to feed to `generate`, the same as in training.

    Args:
        tokenizer: The base model's tokenizer.
        prompt: A text, or the turns so far (dicts with `role` and `content`).
        chat_template: What `PreparedData.chat_template` was in training. With a template a text
            is a user turn; without one it is fed as it stands.
        task_type: Encoder-decoders get the tokenizer's own special tokens, and no template.

    Returns:
        The ids, with the tokens that begin a text, without any that end it (but for encoders).

    Raises:
        DataError: Turns without a chat template, or turns that it cannot render.
    """
    if task_type is TaskType.SEQ_2_SEQ_LM:
        if not isinstance(prompt, str):
            prompt = "\n".join(message["content"] for message in prompt)
        return tokenizer(prompt, verbose=False)["input_ids"]
    encoder = Encoder(tokenizer, chat_template)
    return encoder.prompt(prompt)


class Encoder:
    """Cuts conversations and prompt/completion pairs into pieces, and tokenises them.

    A row of pieces is a list of texts, by turns a prompt and the response to learn.

    Args:
        tokenizer: The base model's tokenizer.
        chat_template: Jinja source, or None for texts as they stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        # A chat template writes the beginning of the text itself.
        self.leading = _leading(tokenizer) if chat_template is None else []
        # What may end a turn: any special token but the one for unknown characters.
        added = tokenizer.added_tokens_decoder
        special = [token for token, entry in added.items() if entry.special]
        special += [token for token in tokenizer.all_special_ids if isinstance(token, int)]
        unknown = tokenizer.unk_token_id
        self._ends = {token for token in special if token != unknown or token == _eos(tokenizer)}

    def conversation(self, messages: list[Message]) -> list[list[str]]:
        """The pieces of `messages`, up to the last response.

        One row of pieces, unless the template rewrites earlier turns (as thinking models' do,
        which drop past thoughts): then a turn whose prompt does not continue the text so far
        begins a row of its own, so that each response is learned once, after what it will see.

        Raises:
            DataError: The template refuses the messages, or its prompt for a response is not how
                the rendered response begins.
        """
        rows: list[list[str]] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], True)
            answered = self._render(messages[: index + 1], False)
            if not answered.startswith(prompt):
                raise DataError(
                    f"the chat template renders turn {index + 1} (assistant) otherwise than its "
                    f"prompt announces: the prompt ends {prompt[-40:]!r}, the turn has "
                    f"{answered[max(0, len(prompt) - 40) :][:40]!r} there."
                )
            _extend(rows, prompt)
            rows[-1].append(answered[len(prompt) :])
        return rows

    def prompt(self, prompt: str | list[Message]) -> list[int]:
        """See `render_prompt`."""
        if isinstance(prompt, str):
            if self.chat_template is None:
                return self._begin(self._ids([prompt])[0])
            prompt = [{"role": "user", "content": prompt}]
        try:
            rows = self.conversation(prompt)
        except DataError:
            rows = []  # turns that could not be learned from can still be answered
        _extend(rows, self._render(prompt, True))
        (pieces,) = self._tokenise(rows[-1:])
        return self._begin([token for piece in pieces for token in piece])

    def encode(self, rows: list[list[str]], learn_all: bool = False) -> list[Tokens]:
        """Tokens and labels of rows of pieces; every response ends with an end token.

        Args:
            rows: By turns prompt and response; the last piece is a response.
            learn_all: Learn the prompts too.
        """
        return [self._label(pieces, learn_all) for pieces in self._tokenise(rows)]

    def encode_texts(self, texts: list[str], length: int) -> list[list[Tokens]]:
        """Blocks of at most `length` tokens for each text, every token learned.

        A text begins with the tokens that begin a text, once (in front of a block from its middle
        they would announce a beginning that is none), and ends with the end token where the
        tokenizer has one.
        """
        eos = _eos(self.tokenizer)
        end = [] if eos is None else [eos]
        blocks: list[list[Tokens]] = []
        for text, ids in zip(texts, self._ids(texts), strict=True):
            whole = self._begin(ids) + end if text.strip() else []
            cuts = [whole[at : at + length] for at in range(0, len(whole), length)]
            blocks.append([Tokens(cut, cut) for cut in cuts])
        return blocks

    def _label(self, pieces: list[list[int]], learn_all: bool) -> Tokens:
        tokens = [token for piece in pieces[:-1] for token in piece]
        begun = self._begin(tokens)
        ids = begun[: len(begun) - len(tokens)]
        labels = [IGNORED] * len(ids)
        for index, piece in enumerate(pieces):
            learned = 0
            if index % 2 == 1:
                ended = self._ended(piece)
                learned = ended or len(piece)
                if index == len(pieces) - 1:
                    # What follows the end is never generated; without an end, nothing stops.
                    piece = piece[:ended] if ended else [*piece, end_of_text(self.tokenizer)]
                    learned = len(piece)
            ids += piece
            labels += piece[:learned] + [IGNORED] * (len(piece) - learned)
        return Tokens(ids, list(ids) if learn_all else labels)

    def _ended(self, piece: list[int]) -> int:
        """Length of the response `piece` up to and with its end-of-turn token; 0 without one."""
        for length in range(len(piece), 0, -1):
            if piece[length - 1] in self._ends:
                return length
            if str(self.tokenizer.decode([piece[length - 1]])).strip():
                break
        return 0

    def _begin(self, ids: list[int]) -> list[int]:
        there = ids[: len(self.leading)] == self.leading
        return ids if there else self.leading + ids

    def _render(self, messages: list[Message], prompt: bool) -> str:
        if self.chat_template is None:
            raise DataError("Turns need a chat template, and none was given: give a text instead.")
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {error}.") from None
        assert isinstance(text, str)
        return text

    def _tokenise(self, rows: list[list[str]]) -> Iterator[list[list[int]]]:
        """The ids of each piece. One call of the tokenizer for all that usually needs one."""
        alone = iter(self._ids([text for row in rows for text in row[:-1] or row]))
        pairs = iter(self._ids([a + b for row in rows for a, b in pairwise(row)]))
        for row in rows:
            heads = [next(alone) for _ in row[:-1] or row]
            pieces = heads[:1]
            for text, head in zip(row[1:], heads, strict=False):
                pieces.append(self._continuation(text, head, next(pairs)))
            yield pieces

    def _continuation(self, text: str, head: list[int], whole: list[int]) -> list[int]:
        """The ids of `text` after a piece whose ids are `head`; `whole` is both tokenised at once.

        Where a token would reach across the cut, `text` is tokenised after a line break instead:
        not alone, since some tokenizers put a space in front of every text.
        """
        if whole[: len(head)] == head:
            return whole[len(head) :]
        head, whole, alone = self._ids(["\n", "\n" + text, text])
        return whole[len(head) :] if whole[: len(head)] == head else alone

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _extend(rows: list[list[str]], prompt: str) -> None:
    """Add `prompt` to the last row of pieces if it continues it, else as a new row."""
    so_far = "".join(rows[-1]) if rows else ""
    if rows and prompt.startswith(so_far) and prompt != so_far:
        rows[-1].append(prompt[len(so_far) :])
    else:
        rows.append([prompt])


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts in front of every text: BOS, [CLS], or nothing."""
    full = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(full) - len(bare) + 1)
    return next((full[:at] for at in starts if full[at : at + len(bare)] == bare), [])


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends a response.

    Raises:
        DataError: The tokenizer has none.
    """
    token = _eos(tokenizer)
    if token is None:
        raise DataError(
            "The tokenizer has no end-of-sequence token, so a response could never end: "
            "set `eos_token` in its tokenizer_config.json."
        )
    return token


def _eos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    token = tokenizer.eos_token_id
    assert token is None or isinstance(token, int)
    return token
