"""A comparison as tables for a terminal, readable at 80 columns and in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from graft.comparison.figures import Column, about, base_figures, columns
from graft.comparison.ranking import ordered, verdict
from graft.comparison.results import Comparison, Group, Spread
from graft.visible import visible

__all__ = ["print_comparison"]


def print_comparison(found: Comparison, console: Console) -> None:
    """Print quality and cost of each point, and what may be said of who is better."""
    if not console.is_terminal:  # nothing is cut or broken there
        console = Console(file=console.file, width=1000)
    quality, cost = columns(found)
    groups = ordered(found)
    for part in (
        Text(visible(about(found))),
        "",
        _quality(found, groups, quality),
        "",
        _cost(found, groups, cost),
        "",
        *(Text(visible(sentence)) for sentence in verdict(found)),
    ):
        console.print(part, highlight=False, soft_wrap=not console.is_terminal)


def _quality(found: Comparison, groups: Sequence[Group], shown: Sequence[Column]) -> Table:
    """The measure that ranks with its range, others by their mean."""
    seeds = len(found.seeds) > 1
    table = _table()
    if found.is_ranked:
        table.add_column("rank", no_wrap=True, justify="right")
    _add_point_column(table)
    for column in shown:
        table.add_column(column.heading, no_wrap=True, justify="right")
        if seeds and column.name == found.metric:
            table.add_column("range", no_wrap=True)

    def cells(name: str, rank: int | None, figures: Mapping[str, Spread]) -> list[str | Text]:
        ranked = [str(rank or "")] if found.is_ranked else []
        row: list[str | Text] = [*ranked, Text(visible(name))]
        for column in shown:
            row.append(column.mean(figures))
            if seeds and column.name == found.metric:
                row.append(column.range(figures))
        return row

    table.add_row(*cells("base model", None, base_figures(found)), style="dim")
    for group in groups:
        table.add_row(*cells(group.point.name, group.rank, group.figures))
    return table


def _cost(found: Comparison, groups: Sequence[Group], shown: Sequence[Column]) -> Table:
    table = _table()
    _add_point_column(table)
    for column in shown:
        table.add_column(column.heading.replace(" ", "\n", 1), no_wrap=True, justify="right")
    figures = base_figures(found)
    table.add_row("base model", *(column.mean(figures) for column in shown), style="dim")
    for group in groups:
        cells = [column.mean(group.figures) for column in shown]
        table.add_row(Text(visible(group.point.name)), *cells)
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold")


def _add_point_column(table: Table) -> None:
    table.add_column("point", overflow="fold", vertical="bottom")
