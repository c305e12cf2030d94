"""`graft chat`: a conversation with an adapted model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graft.inference import Conversation

__all__ = ["chat"]


def chat(
    adapter: Annotated[str, typer.Argument(help="Folder or hub id of an adapter.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model, if not where the adapter says.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn.")] = None,
) -> None:
    """Talk with an adapter; from a pipe, each line is a turn."""
    from graft.cli import quieten

    quieten()
    import torch

    from graft.inference import Conversation, Predictor, Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    if seed is not None:
        torch.manual_seed(seed)
    predictor = Predictor.load(adapter, base_model)
    conversation = Conversation(predictor, sampling, system)
    _note(f"{adapter}: {predictor.about}")
    if predictor.chat_template is None:
        _note("It was trained on texts as they stand, without turns: each line is for itself.")
    if sys.stdin.isatty():
        _note("/reset forgets what was said, /exit or Ctrl-D ends, Ctrl-C stops an answer.")
        _talk(conversation, _typed_lines(), interactive=True)
    else:
        _talk(conversation, (line.rstrip("\r\n") for line in sys.stdin), interactive=False)


def _note(text: str) -> None:
    """What is no answer goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def _typed_lines() -> Iterator[str]:
    """The lines a person types, until Ctrl-D. Ctrl-C drops the line."""
    import readline  # noqa: F401  gives `input` its arrow keys and a history

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            _note("\n/exit or Ctrl-D ends.")


def _talk(conversation: Conversation, lines: Iterator[str], interactive: bool) -> None:
    from graft.errors import DataError

    for line in lines:
        said = line.strip()
        if said == "/exit":
            return
        if said == "/reset":
            conversation.reset()
            _note("A new conversation.")
        elif said.startswith("/") and " " not in said:
            _note(f"There is no command {said}: /reset, /exit.")
        elif said:
            try:
                answer = conversation.say(line, _write)
                print(flush=True)
                if not answer.finished:
                    _note(f"(cut off after {len(answer.ids)} tokens)")
            except KeyboardInterrupt:
                if not interactive:
                    raise
                _note("\n(stopped)")
            except DataError as error:
                if not interactive:
                    raise
                _note(f"graft: {error} /reset begins a new conversation.")


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
