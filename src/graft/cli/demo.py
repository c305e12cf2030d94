"""`graft demo`: the command line of `graft.demo.run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from graft.demo.run import MethodResult

__all__ = ["demo"]


def demo(
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="Only these methods, such as lora,ia3."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the adapters, in PEFT's format.")
    ] = None,
) -> None:
    """Adapt a small bundled model to a task by every method: a few minutes, no network."""
    from graft.demo.settings import SETTINGS, choose

    settings = SETTINGS if methods is None else choose(methods.split(","))
    from graft.cli import quieten

    quieten()
    import torch
    from rich.console import Console

    from graft.demo import demo_model_path
    from graft.demo.run import run_demo
    from graft.training.report import Terminal

    # Steps of such a model take milliseconds: more threads are faster while they have the cores to
    # themselves, and ten times slower while they do not.
    torch.set_num_threads(1)
    console = Console()
    results = run_demo(settings, output_dir=output_dir, callbacks=[Terminal(console)])
    console.print()
    console.print(_table(results))
    if output_dir is None:
        typer.echo("The adapters were not kept; --output-dir FOLDER keeps them.")
    else:
        typer.echo(f"adapters: {output_dir}, for the base model {demo_model_path()}")


def _table(results: list[MethodResult]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        caption="Exact match: share of held-out rows right to the letter.\n"
        "Peak memory: while training, base model included.",
        caption_justify="left",
    )
    table.add_column("method")
    for heading in (
        "trainable\nparameters",
        "exact\nmatch\nbefore",
        "exact\nmatch\nafter",
        "steps",
        "training\n(s)",
        "peak\nmemory\n(GiB)",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        peak = result.peak_memory_gib
        table.add_row(
            result.method,
            f"{result.trainable_parameters:,}",
            f"{result.quality_before:.1%}",
            f"{result.quality_after:.1%}",
            f"{result.steps:,}",
            f"{result.seconds:.1f}",
            "unknown" if peak is None else f"{peak:.2f}",
        )
    return table
