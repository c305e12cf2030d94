"""What a comparison shows while it goes: a line for each run, a bar where there is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from graft.training.report import Callback, Record, Start

__all__ = ["Progress"]


class Progress(Callback):
    """Prints the notes of a comparison, and the steps of the run under way as a bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_start(self, start: Start) -> None:
        if not self.console.is_terminal:
            return
        columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.fields[shown]}"))
        self._bar = Bar(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("", total=start.steps, completed=start.step, shown="")
        self._bar.start()

    def on_step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def on_log(self, record: Record) -> None:
        if self._bar is not None:
            self._bar.update(self._task, shown=f"loss {record['loss']:.4f}")

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
