"""Turns -> tokens, and which of them are learned. Training and inference share this code.

A conversation comes from `rendering` in pieces: prompt, response, next prompt, next response, ...
Each piece is tokenised as the continuation of the piece before, never across the cut. So the
tokens in front of a response are exactly those that `render_prompt` gives to `generate`.

What is learned of a response: all of it up to its end token; or, where the template marks what is
generated (`{% generation %}`), what transformers' own `return_assistant_tokens_mask` gives, and the
end token.

Reading rows is left to `formats`, length and batches to `prepare` and `collate`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from graft.config import TaskType
from graft.data.formats import Message
from graft.data.rendering import Piece, Renderer, Tools, end_tokens
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
    tools: Tools | None = None,
) -> list[int]:
    """The ids to feed to `generate`, the same as in training.

    Args:
        tokenizer: The base model's tokenizer.
        prompt: A text, or the turns so far (dicts with `role` and `content`).
        chat_template: What `PreparedData.chat_template` was in training. With a template a text
            is a user turn; without one it is fed as it stands.
        task_type: Encoder-decoders get the tokenizer's own special tokens, and no template.
        tools: What the chat template's `tools` is to be.

    Returns:
        The ids, with the tokens that begin a text, without any that end it (but for encoders).

    Raises:
        DataError: Turns without a chat template, or turns that it cannot render.
    """
    if task_type is TaskType.SEQ_2_SEQ_LM:
        if not isinstance(prompt, str):
            prompt = "\n".join(message["content"] for message in prompt)
        return tokenizer(prompt, verbose=False)["input_ids"]
    return Encoder(tokenizer, chat_template).prompt(prompt, tools)


_Encoding = tuple[list[int], list[tuple[int, int]] | None]  # ids, and where each is in the text


class _Coded(NamedTuple):
    """The ids of a piece, and which of them are marked; None where it has no marks."""

    ids: list[int]
    marked: list[bool] | None = None


class Encoder:
    """Tokenises conversations, pairs and texts.

    Args:
        tokenizer: The base model's tokenizer.
        chat_template: Jinja source, or None for texts as they stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._renderer = None if chat_template is None else Renderer(tokenizer, chat_template)
        # A chat template writes the beginning of the text itself.
        self.leading = _leading(tokenizer) if chat_template is None else []
        self._ends = set(end_tokens(tokenizer, chat_template).values())
        self._blank: dict[int, bool] = {}
        added = tokenizer.added_tokens_decoder.values()
        texts = sorted((str(token) for token in added), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, texts)) or r"\Z.")
        # What stands before these is tokenised as if they were not there.
        self._walls = {
            str(token)
            for token in added
            if not (token.lstrip or token.single_word or token.normalized)
        }

    def conversation(
        self, messages: list[Message], tools: Tools | None = None
    ) -> list[list[Piece]]:
        """See `Renderer.conversation`.

        Raises:
            DataError: There, or there is no chat template.
        """
        return self._template.conversation(messages, tools)

    def prompt(self, prompt: str | list[Message], tools: Tools | None = None) -> list[int]:
        """See `render_prompt`."""
        if isinstance(prompt, str):
            if self.chat_template is None:
                return self._begin(self._ids([prompt])[0])
            prompt = [{"role": "user", "content": prompt}]
        (pieces,) = self._tokenise([self._template.prompt(prompt, tools)])
        return self._begin([token for piece in pieces for token in piece.ids])

    def encode(self, rows: list[list[Piece]], learn_all: bool = False) -> list[Tokens]:
        """Tokens and labels of rows of pieces; every response ends with an end token.

        Args:
            rows: The last piece of each is a response.
            learn_all: Learn the prompts too, all but responses that are not to be learned.
        """
        coded = self._tokenise(rows)
        return [self._label(*row, learn_all) for row in zip(rows, coded, strict=True)]

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

    @property
    def _template(self) -> Renderer:
        if self._renderer is None:
            raise DataError("Turns need a chat template, and none was given: give a text instead.")
        return self._renderer

    def _label(self, row: list[Piece], coded: list[_Coded], learn_all: bool) -> Tokens:
        before = [token for piece in coded[:-1] for token in piece.ids]
        ids = self._begin(before)
        ids = ids[: len(ids) - len(before)]
        labels = list(ids) if learn_all else [IGNORED] * len(ids)
        for piece, (tokens, marked) in zip(row, coded, strict=True):
            learned = tokens if learn_all else [IGNORED] * len(tokens)
            if piece.kind == "response":
                tokens, learned = self._response(tokens, marked, piece is row[-1])
                learned = tokens if learn_all else learned
            elif piece.kind == "context":
                learned = [IGNORED] * len(tokens)
            ids = ids + tokens
            labels = labels + learned
        return Tokens(ids, labels)

    def _response(
        self, tokens: list[int], marked: list[bool] | None, last: bool
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of a response. It ends with what stops `generate`, which is learned."""
        ended = self._ended(tokens)
        length = ended or len(tokens)
        any_learned = marked is None or any(marked)
        if marked is None:
            labels = tokens[:length] + [IGNORED] * (len(tokens) - length)
        else:
            flags = list(marked)
            if ended and any_learned:
                flags[ended - 1] = True  # where the mark leaves it out, nothing would stop
            labels = [t if on else IGNORED for t, on in zip(tokens, flags, strict=True)]
            length = max([length, *(at + 1 for at, on in enumerate(flags) if on)])
        if not last:
            return tokens, labels
        # What follows the end is never generated.
        tokens, labels = tokens[:length], labels[:length]
        if not ended:
            end = end_of_text(self.tokenizer)
            tokens, labels = [*tokens, end], [*labels, end if any_learned else IGNORED]
        return tokens, labels

    def _ended(self, tokens: list[int]) -> int:
        """Length of the response `tokens` up to and with its end-of-turn token; 0 without one."""
        for length in range(len(tokens), 0, -1):
            token = tokens[length - 1]
            if token in self._ends:
                return length
            if token not in self._blank:
                self._blank[token] = not str(self.tokenizer.decode([token])).strip()
            if not self._blank[token]:
                break
        return 0

    def _begin(self, ids: list[int]) -> list[int]:
        there = ids[: len(self.leading)] == self.leading
        return ids if there else self.leading + ids

    def _tokenise(self, rows: list[list[Piece]]) -> list[list[_Coded]]:
        """The ids of each piece: what it adds to the pieces before. Each text is tokenised once."""
        first = [self._parted(row[0].text) for row in rows]
        joins = [(self._parted(a.text)[1], b) for row in rows for a, b in pairwise(row)]
        parts = [part for body_and_tail in first for part in body_and_tail]
        known = dict.fromkeys([*parts, *(head for head, _ in joins)])
        known = dict(zip(known, self._ids(list(known)), strict=True)) | {"": []}
        rest = iter(self._continued(joins, known))
        return [
            [_Coded(known[body] + known[tail]), *(next(rest) for _ in row[1:])]
            for (body, tail), row in zip(first, rows, strict=True)
        ]

    def _parted(self, text: str) -> tuple[str, str]:
        """`text` in front of its last special token, and from there on.

        Nothing merges with a special token, so both parts can be tokenised for themselves; and the
        second is all that what follows `text` depends on.
        """
        at = 0
        for found in self._added.finditer(text):
            if found.group() in self._walls:
                at = found.start()
        return text[:at], text[at:]

    def _continued(
        self, joins: list[tuple[str, Piece]], known: dict[str, list[int]]
    ) -> list[_Coded]:
        """The ids of each piece, after a text whose ids are `known`."""
        marked = any(piece.marked is not None for _, piece in joins)
        out = [
            self._rest(whole, known[head], len(head), piece)
            for whole, (head, piece) in zip(
                self._encodings([head + piece.text for head, piece in joins], marked),
                joins,
                strict=True,
            )
        ]
        # Where a token would reach across the cut, the piece is tokenised after a line break
        # instead: not alone, since some tokenizers put a space in front of every text.
        crossed = [at for at, coded in enumerate(out) if coded is None]
        for mark in ("\n", ""):
            texts = [mark + joins[at][1].text for at in crossed]
            (head,) = self._ids([mark])
            for at, whole in zip(crossed, self._encodings(texts, marked), strict=True):
                out[at] = out[at] or self._rest(whole, head, len(mark), joins[at][1])
        return [coded for coded in out if coded is not None]

    def _rest(self, whole: _Encoding, head: list[int], shift: int, piece: Piece) -> _Coded | None:
        """What `whole` has after `head`, the ids of its first `shift` characters."""
        ids, offsets = whole
        if ids[: len(head)] != head:
            return None
        if piece.marked is None or offsets is None:
            return _Coded(ids[len(head) :])
        spans = [(start + shift, end + shift) for start, end in piece.marked]
        flags = [
            any(a < end and b > start for start, end in spans) for a, b in offsets[len(head) :]
        ]
        return _Coded(ids[len(head) :], flags)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [ids for ids, _ in self._encodings(texts, False)]

    def _encodings(self, texts: list[str], offsets: bool) -> list[_Encoding]:
        if not texts:
            return []
        coded = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        places = coded["offset_mapping"] if offsets else [None] * len(texts)
        return list(zip(coded["input_ids"], places, strict=True))


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
