"""`graft generate`: the command line of `graft.inference` for single prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.errors import ConfigError

if TYPE_CHECKING:
    from graft.inference import Predictor, Sampling

__all__ = ["generate"]

_BATCH = 8  # prompts answered at a time


def generate(
    adapter: Annotated[str, typer.Argument(help="Folder or hub id of an adapter.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to answer, to classify or (words) to tag; may be repeated."),
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option(help="Second text of each prompt, for a classifier of pairs."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="The text in which the answers stand: a file, or the text itself."),
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="A file with a prompt on each line; - is standard input.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model, if not where the adapter says.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object on a line for each prompt.")
    ] = False,
) -> None:
    """Answer prompts with an adapter, classify them, tag their words, or find answers in a text."""
    from graft.cli import quieten

    prompts = _prompts(prompt or [], prompt_file)
    if text_pair and len(text_pair) != len(prompts):
        raise ConfigError(
            f"{len(text_pair)} --text-pair for {len(prompts)} prompts: give each one."
        )
    quieten()
    import torch

    from graft.config import TaskType
    from graft.inference import Predictor, Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    if seed is not None:
        torch.manual_seed(seed)
    predictor = Predictor.load(adapter, base_model)
    task = predictor.task_type
    if text_pair and task is not TaskType.SEQ_CLS:
        raise ConfigError(f"--text-pair is for classifiers; {adapter} is an adapter for {task}.")
    if context is not None and task is not TaskType.QUESTION_ANS:
        raise ConfigError(f"--context is for QUESTION_ANS; {adapter} is an adapter for {task}.")
    if task is TaskType.SEQ_CLS:
        _classify(predictor, prompts, text_pair or [], as_json)
    elif task is TaskType.TOKEN_CLS:
        _tag(predictor, prompts, as_json)
    elif task is TaskType.QUESTION_ANS:
        if context is None:
            raise ConfigError("There is no text to find answers in: give --context FILE or TEXT.")
        _extract(predictor, prompts, _text(context), as_json)
    else:
        _answer(predictor, prompts, sampling, as_json)


def _prompts(given: list[str], file: str | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        prompts += [line for line in _read(file).splitlines() if line.strip()]
    if not prompts:
        raise ConfigError("There is no prompt: give --prompt TEXT, or --prompt-file FILE.")
    return prompts


def _answer(predictor: Predictor, prompts: list[str], sampling: Sampling, as_json: bool) -> None:
    for at in range(0, len(prompts), _BATCH):
        batch = prompts[at : at + _BATCH]
        for prompt, answer in zip(batch, predictor.generate(batch, sampling), strict=True):
            if as_json:
                _print({"prompt": prompt, "answer": answer.text, "finished": answer.finished})
                continue
            print(answer.text, flush=True)
            if not answer.finished:
                print(f"graft: cut off after {len(answer.ids)} tokens.", file=sys.stderr)


def _classify(predictor: Predictor, prompts: list[str], pairs: list[str], as_json: bool) -> None:
    texts = list(zip(prompts, pairs, strict=True)) if pairs else prompts
    for text, chances in zip(texts, predictor.classify(texts), strict=True):
        label = max(chances, key=lambda name: chances[name])
        if as_json:
            _print({"prompt": text, "label": label, "probabilities": chances})
        else:
            print(f"{label} {chances[label]:.4f}", flush=True)


def _tag(predictor: Predictor, prompts: list[str], as_json: bool) -> None:
    """A line for each word, and an empty one after each prompt."""
    for prompt in prompts:
        words = prompt.split()
        (tags,) = predictor.tag([words])
        if as_json:
            _print({"prompt": prompt, "words": words, "tags": tags})
        else:
            lines = [f"{word} {tag or '-'}" for word, tag in zip(words, tags, strict=True)]
            print("\n".join(lines), end="\n\n", flush=True)


def _extract(predictor: Predictor, prompts: list[str], context: str, as_json: bool) -> None:
    for prompt in prompts:
        (found,) = predictor.extract([(prompt, context)])
        if as_json:
            about = {"start": found.start, "probability": found.probability}
            _print({"prompt": prompt, "answer": found.text, **about})
        else:
            print(found.text, flush=True)
            if found.start is None:
                print(f"graft: the text does not answer {prompt!r}.", file=sys.stderr)


def _text(given: str) -> str:
    """The text in the file `given`, or `given`."""
    try:
        is_file = Path(given).is_file()
    except (OSError, ValueError):  # no name that a file can have
        is_file = False
    if is_file:
        return _read(given)
    if given.endswith((".txt", ".md")) and len(given.split()) == 1:
        raise ConfigError(f"--context: there is no file {given}.")
    return given


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The text in {file} cannot be read: {error}.") from None


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
