"""`graft runs`: the command line of `graft.comparison.history`, `difference` and `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graft.comparison.difference import Difference
    from graft.comparison.history import PastRun

__all__ = ["runs"]

_NARROW = 100  # columns


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER | RUN_A RUN_B]",
            help="A folder to search (this one by default), or two runs to compare.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the loss curves of these runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List past runs, say what differs between two, overlay their curves.

    Hidden folders are not searched, nor are the checkpoints of a run.
    """
    from graft.comparison.difference import difference
    from graft.comparison.history import find_runs, read_run
    from graft.comparison.written import is_run

    if plot is not None:
        _require_png(plot)
    given = folders or [Path()]
    problems: list[str] = []
    if len(given) == 2 and all(is_run(folder) for folder in given):
        found = [read_run(folder) for folder in given]
        told = difference(*found)
        _print_json(_differences(told)) if as_json else _print_difference(told)
    else:
        found = []
        for folder in given:
            below, unreadable = find_runs(folder)
            found += [run for run in below if run.folder not in {each.folder for each in found}]
            problems += unreadable
        _print_json([_facts(run) for run in found]) if as_json else _print_list(found, given)
    for problem in problems:
        typer.echo(f"graft: {problem}", err=True)
    if plot is not None:
        _draw(found, plot)


def _require_png(path: Path) -> None:
    from graft.atomic import require_place
    from graft.errors import ConfigError

    require_place(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"The plot is a PNG; give it a name that ends in .png, not {path.name}.")


def _draw(found: Sequence[PastRun], path: Path) -> None:
    from graft.atomic import write_bytes
    from graft.comparison.plots import Curve, draw_curves, png
    from graft.errors import ConfigError

    curves = [
        Curve(name, (run.records,))
        for name, run in zip(_names(found), found, strict=True)
        if run.records
    ]
    if not curves:
        raise ConfigError("There is no curve to draw: none of these runs has a log.")
    write_bytes(path, png(draw_curves(curves)))
    typer.echo(f"{len(curves)} curve{'' if len(curves) == 1 else 's'}: {path}", err=True)


# --- the list ---------------------------------------------------------------------------------


def _print_list(found: Sequence[PastRun], given: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.text import Text

    from graft.visible import visible

    if not found:
        places = ", ".join(str(folder.absolute()) for folder in given)
        typer.echo(f"no run in {places}")
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # lines are not broken in a pipe
    names = dict(zip((run.folder for run in found), _names(found), strict=True))
    for number, base in enumerate(dict.fromkeys(run.base_model for run in found)):
        if number:
            console.print()
        about = "base model not known" if base is None else f"base model {visible(base)}"
        console.print(Text(about, "bold"), soft_wrap=not console.is_terminal)
        own = [run for run in found if run.base_model == base]
        console.print(_run_table(own, names, narrow=console.width < _NARROW))
    broken = [run for run in found if run.problems]
    if broken:
        console.print()
    for run in broken:
        line = f"! {names[run.folder]}: {'; '.join(run.problems)} (last written {_when(run)})"
        console.print(Text(visible(line), "yellow"), soft_wrap=not console.is_terminal)


def _run_table(found: Sequence[PastRun], names: Mapping[Path, str], narrow: bool) -> Table:
    """One row a run; in a narrow one no year, and what is part of a run without that run's name."""
    from rich.table import Table

    from graft.visible import visible

    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0 if narrow else 1), header_style="bold"
    )
    table.add_column("run", overflow="fold")
    table.add_column("method", no_wrap=True)
    for heading in ("steps", "loss\nbefore", "after", "time", "peak\nGiB"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("date", no_wrap=True)
    for run in found:
        name = names[run.folder]
        wholes = [above for above in run.folder.parents if any(r.folder == above for r in found)]
        if narrow and wholes:
            name = f"  {run.folder.relative_to(wholes[0])}"
        mark = "! " if run.problems else ""
        method = run.method if run.kind == "run" else run.kind  # its adapters follow
        table.add_row(
            mark + visible(name),
            visible(method or ""),
            _shown(run.steps, ",.0f"),
            _shown(run.loss_before, ".4g"),
            _shown(run.loss_after, ".4g"),
            _duration(run.seconds),
            _shown(run.peak_memory_gib, ".2f"),
            _when(run)[5:] if narrow else _when(run),
        )
    return table


def _names(found: Sequence[PastRun]) -> list[str]:
    """The folders, without what all of them share."""
    import os

    folders = [str(run.folder) for run in found]
    shared = os.path.commonpath([Path(folder).parent for folder in folders]) if found else ""
    return [os.path.relpath(folder, shared or ".") for folder in folders]


def _when(run: PastRun) -> str:
    return f"{run.date:%Y-%m-%d %H:%M}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """In the unit that suits it."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _facts(run: PastRun) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "kind": run.kind,
        "finished": run.finished,
        "problems": list(run.problems),
        "base_model": run.base_model,
        "method": run.method,
        "steps": run.steps,
        "eval_loss_before": run.loss_before,
        "eval_loss_after": run.loss_after,
        "seconds": run.seconds,
        "peak_memory_gib": run.peak_memory_gib,
        "date": run.date.isoformat(timespec="seconds"),
    }


def _print_json(told: Any) -> None:
    import json

    typer.echo(json.dumps(told, indent=2, ensure_ascii=False))


# --- two runs ---------------------------------------------------------------------------------


def _differences(told: Difference) -> dict[str, Any]:
    parts = {name: getattr(told, name) for name in ("settings", "data", "versions", "results")}
    return {"runs": [_facts(told.a), _facts(told.b)], **parts, "same": told.same}


def _print_difference(told: Difference) -> None:
    from rich.console import Console
    from rich.text import Text

    from graft.visible import visible

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    for run, letter in ((told.a, "a"), (told.b, "b")):
        about = f"  {visible(str(run.folder))}, {_when(run)}"
        console.print(Text.assemble((letter, "bold"), about))
        for problem in run.problems:
            console.print(Text(f"! {visible(problem)}", "yellow"))
    _print_pairs("settings", told.settings, console)
    _print_pairs("data, SHA-256", {n: _digests(pair) for n, pair in told.data.items()}, console)
    _print_pairs("versions", told.versions, console)
    _print_pairs("results", told.results, console, changes=True)
    if told.same:
        console.print(f"\nthe same in both: {', '.join(told.same)}")


def _print_pairs(
    title: str, pairs: Mapping[str, tuple[Any, ...]], console: Console, changes: bool = False
) -> None:
    from rich.table import Table

    console.print()
    if not pairs:
        console.print(f"{title}: no difference")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, overflow="fold")
    for heading in ("a", "b", *(["b - a"] if changes else [])):
        table.add_column(heading, overflow="fold", justify="right" if changes else "left")
    for name, pair in pairs.items():
        table.add_row(_value(name), *map(_value, pair), *([_change(*pair)] if changes else []))
    console.print(table)


def _digests(pair: tuple[Any, Any]) -> tuple[Any, ...]:
    """As much of two digests as tells them apart."""
    return tuple(digest and str(digest)[:12] for digest in pair)


def _value(value: Any) -> str:
    from graft.visible import visible

    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else visible(str(value))


def _change(a: Any, b: Any) -> str:
    if a is None or b is None:
        return ""
    share = f" ({(b - a) / abs(a):+.1%})" if a else ""
    return (f"{b - a:+,}" if isinstance(b - a, int) else f"{b - a:+.4g}") + share
