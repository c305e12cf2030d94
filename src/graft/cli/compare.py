"""`graft compare`: the command line of `graft.comparison`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graft.comparison.results import Comparison

__all__ = ["compare"]


def compare(
    run_file: Annotated[
        Path,
        typer.Argument(metavar="RUN.yaml", help="The run file, with `grid:` and `compare:`."),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | --KEY VALUE]...",
            help="Settings that replace those of the file, such as compare.seeds=3.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the points that are done and go on.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start more than 100 runs without asking.")
    ] = False,
) -> None:
    """Train and measure the adapters of a run file, side by side on one base model.

    Every adapter is a point, and every choice of the grid one more: `grid: {adapters.NAME.r: [4,
    8], train.learning_rate: [1e-4, 1e-3]}`. `compare: {seeds: 3, full: true, text: FILE}` trains
    each with three seeds, beside full fine-tuning, and measures on FILE what was forgotten.
    """
    from graft.cli import quieten
    from graft.comparison.grid import LIMIT, load_study
    from graft.training.runfile import split_overrides

    overrides = split_overrides(changes or [])
    study = load_study(run_file, overrides, limit=None if yes else LIMIT)
    quieten()
    from graft.comparison.progress import Progress
    from graft.comparison.study import compare as run

    found = run(study, resume=resume, callbacks=[Progress()])
    _show(found, study.output_dir)
    if not any(row.measured for row in found.rows):
        typer.echo("graft: every run failed.", err=True)
        raise typer.Exit(1)


def _show(found: Comparison, folder: Path) -> None:
    """Print the table, and write all else that shows the results."""
    from rich.console import Console

    from graft.atomic import write_text
    from graft.comparison.csvfile import to_csv
    from graft.comparison.page import render_page
    from graft.comparison.plots import draw_plots
    from graft.comparison.records import RESULTS_NAME
    from graft.comparison.table import print_comparison

    print_comparison(found, Console())
    write_text(folder / "results.csv", to_csv(found))
    write_text(folder / "report.html", render_page(found))
    draw_plots(found, folder)
    typer.echo(f"{folder / 'report.html'}, beside it results.csv, plots and {RESULTS_NAME}")
