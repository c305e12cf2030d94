"""`graft convert`: the command line of `graft.training.conversion`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graft.training.conversion import Conversion

__all__ = ["convert"]


def convert(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file of LLaMA-Factory or axolotl.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="RUN.yaml", help="The run file to write.")
    ] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a run file of another tool's file for LoRA, and list what is lost."""
    from graft.training.conversion import convert as read
    from graft.training.runfile import write_run_file

    done = read(file)
    write_run_file(output, done.text(), force)
    for line in _told(done, output):
        typer.echo(line)


def _told(done: Conversion, output: Path) -> list[str]:
    lines = [f"{done.path} ({done.tool}) -> {output}: {len(done.carried)} settings carried over."]
    lines += _wrapped(f"Set as {done.tool} does by itself", ", ".join(done.set_by_default()))
    lines += _wrapped("Nothing to set for", ", ".join(done.equal))
    if done.lost:
        lines.append("Not carried over, or not the same here:")
    for names, why in done.reasons():
        lines += textwrap.wrap(", ".join(names), 78, initial_indent="  ", subsequent_indent="  ")
        lines += textwrap.wrap(why, 78, initial_indent="      ", subsequent_indent="      ")
    return [*lines, f"Next: graft train {output} --dry-run"]


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label}: {text}", 78, subsequent_indent="  ") if text else []
