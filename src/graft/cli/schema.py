"""`graft schema`: the command line of `graft.training.schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["schema"]


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", help="Write it into this file.", metavar="FILE")
    ] = None,
) -> None:
    """Print the JSON Schema of run files, for editors."""
    from graft.atomic import require_place, write_text
    from graft.training.schema import run_file_schema

    text = json.dumps(run_file_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    require_place(output)
    write_text(output, text)
    typer.echo(f"wrote {output}; editors with a YAML language server take it from this first line")
    typer.echo(f"of a run file:\n# yaml-language-server: $schema={output}")
