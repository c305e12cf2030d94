"""`graft data preview`: the command line of `graft.data.preview`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.data.arguments import Model, Settings, Source, Task, as_trained, find_run
from graft.cli.data.lines import indented

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from graft.config import TaskType
    from graft.data.preview import Piece, Preview, Shown, Side

__all__ = ["preview"]

_TRAINED = "black on green"
_MARKS = "⟦⟧"  # around what is trained, where there is no colour


def preview(
    source: Source,
    settings: Settings = None,
    model: Model = None,
    task_type: Task = None,
    rows: Annotated[int, typer.Option(help="Examples to show of each source.")] = 3,
    row: Annotated[int | None, typer.Option(help="Show this row, counted from 1.")] = None,
    random: Annotated[
        int | None, typer.Option(metavar="SEED", help="Show rows drawn by this seed.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a page instead.")
    ] = None,
) -> None:
    """Show rows exactly as they will be trained, with the trained tokens marked."""
    from graft.cli import quieten

    run = find_run(source, settings, model, task_type)
    quieten()
    from graft.atomic import require_place, write_text
    from graft.data.preview import preview as look
    from graft.data.preview import render_page

    if html is not None:
        require_place(html)
    run, tokenizer, _ = as_trained(run)
    previews = look(run.data, tokenizer, run.task_type, rows=rows, row=row, seed=random)
    if html is not None:
        write_text(html, render_page(previews, run.base_model))
        count = sum(len(p.shown) for p in previews)
        typer.echo(f"{count} example{'' if count == 1 else 's'}: {html}")
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for shown in previews:
        _print(shown, console)


def _print(found: Preview, console: Console) -> None:
    from rich.text import Text

    rows = f"{found.rows:,} row{'s' if found.rows != 1 else ''}"
    console.print(Text(found.name, "bold"))
    about = (
        f"{rows}, format {found.format}, {found.task_type}, {found.template}, "
        f"at most {found.limit:,} tokens"
    )
    for line in indented(Text(about), console, 0):
        console.print(line)
    for shown in found.shown:
        console.print()
        for line in indented(_heading(shown), console, 2, first=0):
            console.print(line)
        for side in shown.sides:
            if side.name:
                console.print(Text(f"  {side.name}", "dim"))
            for line in indented(_marked(side, found.task_type, console), console, 2):
                console.print(line)
    if found.more:
        console.print(f"\n  and {found.more:,} more of this row")
    console.print()


def _heading(shown: Shown) -> Text:
    from rich.text import Text

    from graft.visible import visible

    part = f", part {shown.part[0]} of {shown.part[1]}" if shown.part else ""
    text = Text().append(f"row {shown.row}{part}", "bold")
    for fact in shown.facts:
        text.append("  ").append(visible(fact.text), "" if fact.good else "red")
    return text


def _marked(side: Side, task_type: TaskType, console: Console) -> Text:
    if task_type == "TOKEN_CLS":
        return _labelled(side)
    from rich.text import Text

    from graft.visible import visible

    text, inside = Text(), False
    signs = "" if console.color_system else _MARKS
    for piece in side.pieces:
        if signs and piece.learned != inside:
            text.append(signs[0] if piece.learned else signs[1])
            inside = piece.learned
        text.append(visible(piece.text), _style(piece))
    if inside:
        text.append(signs[1])
    return text


def _labelled(side: Side) -> Text:
    """Words with their labels: `Empire/B-location`."""
    from rich.text import Text

    from graft.data.preview import words_of
    from graft.visible import visible

    text = Text()
    for word in words_of(side.pieces):
        text.append(" " if text else "")
        said = "".join(piece.text for piece in word).strip()
        text.append(visible(said), _style(word[0]) if word[0].special else "")
        if (label := word[0].label) is not None:
            text.append(f"/{visible(label)}", "dim" if label == "O" else "bold cyan")
    return text


def _style(piece: Piece) -> str:
    if piece.learned:
        return _TRAINED + (" bold" if piece.special else "")
    return "magenta" if piece.special else ""
