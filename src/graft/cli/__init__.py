"""The command `graft`: one module per verb, and how a verb's end becomes an exit code.

A verb is a name in `VERBS` and a module `graft.cli.NAME` with a function of that name, whose
docstring is its help. What is heavy is imported inside that function, so that help stays quick.
A verb in `GROUPS` is a package of such modules, `graft data check` being `graft.cli.data.check`.

Exit codes: 0 done, 1 a run that failed, 2 something the user can mend, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from typing import Any, NoReturn

import typer

from graft.errors import GraftError

__all__ = ["GROUPS", "VERBS", "main", "quieten"]

VERBS = (
    "doctor",
    "download",
    "init",
    "convert",
    "schema",
    "plan",
    "train",
    "compare",
    "runs",
    "generate",
    "chat",
    "merge",
    "inspect",
    "data",
    "demo",
)  # in the order of the help
GROUPS = {"data": ("preview", "check")}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the hubs' clients draw bars, in a pipe too
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    verbs = words[:1] if words and words[0] in VERBS else VERBS
    app = _make_app(verbs, debug=len(words) < len(given))
    sys.exit(app(args=words, prog_name="graft"))


def quieten() -> None:
    """Keep libraries from writing between graft's own lines; for verbs that load a model."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # to import it takes a second
    warnings.simplefilter("ignore")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _make_app(verbs: Sequence[str], debug: bool) -> typer.Typer:
    summary = "Adapt a frozen pretrained transformer by training a few added parameters."
    app = _group(summary)
    _add_verbs(app, "graft.cli", verbs, debug)
    return app


def _group(summary: str | None) -> typer.Typer:
    app = typer.Typer(
        help=summary,
        epilog="Add --debug to see where an error comes from.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # without it, a single verb would not have to be named
    return app


def _add_verbs(app: typer.Typer, package: str, verbs: Sequence[str], debug: bool) -> None:
    for verb in verbs:
        module = import_module(f"{package}.{verb}")
        if verb in GROUPS:
            group = _group(module.__doc__)
            _add_verbs(group, module.__name__, GROUPS[verb], debug)
            app.add_typer(group, name=verb)
            continue
        function = getattr(module, verb)
        # Words such as `--learning_rate 1e-3` are the verb's to read, where it takes settings.
        takes_settings = {"changes", "settings"} & signature(function).parameters.keys()
        settings = {"ignore_unknown_options": bool(takes_settings)}
        app.command(verb, context_settings=settings)(_ending_well(function, debug))


def _ending_well(function: Callable[..., None], debug: bool) -> Callable[..., None]:
    """`function`, ending with one sentence and an exit code where it fails."""

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt as stop:
            _fail(str(stop) or "stopped.", 130)
        except typer.Exit:
            raise
        except BrokenPipeError:  # whoever read this has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if debug:
                raise
            ours = type(error).__module__.startswith("graft.")
            message = str(error) if ours else f"{type(error).__name__}: {error} (see --debug)"
            _fail(message, 2 if isinstance(error, GraftError) else 1)

    return verb


def _fail(message: str, code: int) -> NoReturn:
    print(f"graft: {message}", file=sys.stderr)
    raise typer.Exit(code)
