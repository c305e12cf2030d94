"""`graft data check`: the command line of `graft.data.check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.data.arguments import Model, Settings, Source, Task, as_trained, find_run
from graft.cli.data.lines import indented

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from graft.data.check import Finding, Report
    from graft.training.config import RunConfig

__all__ = ["check"]

_LABELS = 10  # those that are printed; JSON has all


def check(
    source: Source,
    settings: Settings = None,
    model: Model = None,
    task_type: Task = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what is in the data, and find what would spoil a run: then the exit code is 1."""
    from graft.cli import quieten

    run = find_run(source, settings, model, task_type)
    quieten()
    from rich.console import Console

    from graft.data.check import check_data

    with Console(stderr=True).status("reading") as status:  # on a terminal only
        run, tokenizer, room = as_trained(run)
        report = check_data(
            run.data,
            tokenizer,
            run.task_type,
            seed=run.train.seed,
            room=room,
            rows_per_step=_rows_per_step(run),
            tell=status.update,
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _print(report, Console(highlight=False, markup=False, soft_wrap=True))
    if report.spoiled:
        raise typer.Exit(1)


def _rows_per_step(run: RunConfig) -> int:
    return run.train.per_device_train_batch_size * run.train.gradient_accumulation_steps


def _print(report: Report, console: Console) -> None:
    from rich.text import Text

    for origin in report.origins:
        line = Text().append(origin.name, "bold")
        line.append(f"  {_rows(origin.rows)}{' to evaluate on' * origin.held}")
        console.print(line)
    console.print()
    console.print(_table(report))
    for name, side in (("train", report.train), ("eval", report.eval)):
        if side is not None and side.labels:
            console.print()
            for line in indented(Text(f"labels of {name}: {_balance(side.labels)}"), console, 2, 0):
                console.print(line)
    for finding in report.findings:
        console.print()
        for text, first in _paragraphs(finding):
            for line in indented(text, console, 8, first):
                console.print(line)
    spoils = sum(finding.severity == "spoils" for finding in report.findings)
    remarks = len(report.findings) - spoils
    verdict = Text()
    if spoils:
        verdict.append(f"{spoils} finding{'s' * (spoils > 1)} would spoil the run", "bold red")
    else:
        verdict.append("nothing would spoil the run", "bold")
    console.print()
    console.print(verdict.append(f"; {remarks or 'no'} remark{'s' * (remarks != 1)}"))


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("examples", "tokens", "min", "median", "p95", "max", "trained", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, side in (("train", report.train), ("eval", report.eval)):
        if side is None:
            continue
        sizes = (side.rows, side.tokens, side.shortest, side.median, side.p95, side.longest)
        learned = f"{side.learned / side.tokens:.0%}" if side.learned else "-"
        table.add_row(name, *(f"{size:,}" for size in sizes), learned, f"{side.truncated:,}")
    return table


def _balance(labels: dict[str, int]) -> str:
    from graft.visible import visible

    total = sum(labels.values())
    first = [f"{visible(n)} {c:,} ({_share(c / total)})" for n, c in list(labels.items())[:_LABELS]]
    more = len(labels) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def _paragraphs(finding: Finding) -> Iterator[tuple[Text, int]]:
    """What to print of a finding, and where each paragraph begins."""
    from rich.text import Text

    from graft.visible import visible

    spoils = finding.severity == "spoils"
    unit = finding.unit.removesuffix("s") if finding.count == 1 else finding.unit
    text = Text()
    text.append("SPOILS" if spoils else "remark", "bold red" if spoils else "bold yellow")
    text.append(f"  {finding.name}: ", "bold")
    text.append(f"{finding.count:,} {unit} ({_share(finding.share)}): {visible(finding.what)}")
    yield text, 0
    for place in _places(finding):
        yield Text(place, "dim"), 8
    yield Text(f"-> {finding.cure}"), 8


def _places(finding: Finding) -> Iterator[str]:
    """The rows, file by file: `FILE: rows 3, 7 (as 2)`, or `FILE, as in OTHER: row 7 (as 2)`."""
    rows: dict[str, list[str]] = {}
    for index, place in enumerate(finding.where):
        name, _, row = place.rpartition(":")
        if finding.like:
            other, _, twin = finding.like[index].rpartition(":")
            name += f", as in {other}" * (other != name)
            row += f" (as {twin})"
        rows.setdefault(name, []).append(row)
    for name, numbers in rows.items():
        more = ", ..." if finding.count > len(finding.where) and name == [*rows][-1] else ""
        yield f"{name}: row{'s' * (len(numbers) > 1)} {', '.join(numbers)}{more}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
