"""`graft init`: the command line of `graft.training.draft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init"]


def init(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, hf:ORG/NAME or ms:ORG/NAME.")
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A file, a folder, hf:ORG/NAME or ms:ORG/NAME.")
    ],
    method: Annotated[
        str, typer.Option("--method", help="lora, ia3, bitfit, prompt_tuning, ...")
    ] = "lora",
    output: Annotated[
        Path, typer.Option("--output", metavar="RUN.yaml", help="The run file to write.")
    ] = Path("run.yaml"),
    task_type: Annotated[
        str | None,
        typer.Option("--task-type", help="CAUSAL_LM, SEQ_CLS, ...; else as the data says."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented run file for a model and a data file."""
    from graft.cli import quieten
    from graft.training.runfile import refuse_written, write_run_file

    refuse_written(output, force)  # before the work
    quieten()
    from graft.training.draft import draft

    made = draft(model, data, method, task_type)
    write_run_file(output, made.text, force)
    for line in made.findings:
        typer.echo(line)
    typer.echo(
        f"wrote {output}. Next:\n"
        f"  graft data check {output}        what would spoil the run\n"
        f"  graft data preview {output}      the rows as the model will read them\n"
        f"  graft train {output} --dry-run   all but the steps\n"
        f"  graft train {output}"
    )
