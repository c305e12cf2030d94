"""What a run tells: to the terminal while it goes, and to files.

`Callback` is all the loop knows. `LogFile` writes `train_log.jsonl`, `Terminal` shows progress,
`draw_losses` makes `loss.png`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from graft.atomic import write_text
from graft.errors import CheckpointError

__all__ = ["Callback", "LogFile", "Start", "Terminal", "draw_losses"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What is known before the first step.

    Attributes:
        step: Steps done already, above 0 in a resumed run.
        steps: Steps of the whole run.
        rows: Training rows.
        eval_rows: Rows to evaluate on.
        trainable: Parameters that learn.
        parameters: All parameters, these included.
        device: Where it happens.
        batches: How batches meet the model: packed or padded, and why.
    """

    step: int
    steps: int
    rows: int
    eval_rows: int
    trainable: int
    parameters: int
    device: str
    batches: str


class Callback:
    """Hears of a run. Override what is of interest."""

    def of(self, adapter: str | None) -> Callback:
        """Who hears of one adapter of the run; None where the run has one only."""
        return self

    def note(self, text: str) -> None:
        """A decision or a fact about the input that people should see."""

    def on_start(self, start: Start) -> None:
        """Before the first step."""

    def on_step(self, step: int) -> None:
        """After each optimizer step; the device may still be at work on it."""

    def on_log(self, record: Record) -> None:
        """Every `logging_steps` steps: `step`, `loss`, `learning_rate`, ..."""

    def on_evaluate(self, record: Record) -> None:
        """After each evaluation: `step`, `eval_loss`, ...; step 0 is the base model."""

    def on_save(self, folder: Path) -> None:
        """After a checkpoint was written."""

    def on_end(self) -> None:
        """The run is over, well or not."""


class LogFile(Callback):
    """`train_log.jsonl`: a line for each log record and each evaluation.

    Args:
        path: The file; written from `on_start` on.
        step: Where the run goes on: lines up to this step are kept.

    Attributes:
        kept: These records.

    Raises:
        CheckpointError: A line among them that is no record.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.kept = _records_until(step, path) if step and path.exists() else []

    def on_start(self, start: Start) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in self.kept))

    def on_log(self, record: Record) -> None:
        self._append(record)

    def on_evaluate(self, record: Record) -> None:
        self._append(record)

    def _append(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _records_until(step: int, path: Path) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if records and records[-1]["step"] > step:
            break  # what follows is done again, and a crash may have cut its last line short
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if records and records[-1]["step"] == step:
                break
            raise CheckpointError(f"{path}, line {number} is not JSON: {line[:60]!r}.") from None
    return [record for record in records if record["step"] <= step]


class Terminal(Callback):
    """A progress bar for each adapter on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars: Progress | None = None

    def of(self, adapter: str | None) -> Callback:
        return _Line(self, adapter)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def bars(self) -> Progress | None:
        """Where bars are drawn, none of which may be there yet; None: nowhere."""
        if self._bars is None and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                BarColumn(20),
                TextColumn("{task.fields[shown]}"),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        return self._bars

    def on_end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class _Line(Callback):
    """One adapter's bar, or its lines."""

    def __init__(self, terminal: Terminal, adapter: str | None) -> None:
        self.terminal = terminal
        self.name = adapter or ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._steps = 0

    def note(self, text: str) -> None:
        self.terminal.note(f"{self.name}: {text}" if self.name else text)

    def on_start(self, start: Start) -> None:
        share = start.trainable / start.parameters
        evaluated = f", {start.eval_rows:,} to evaluate on" if start.eval_rows else ""
        self.note(
            f"training {start.trainable:,} of {start.parameters:,} parameters ({share:.2%}) "
            f"on {start.rows:,} rows{evaluated}; {start.steps:,} steps on {start.device}"
            + (f", {start.step:,} of them done" if start.step else "")
        )
        self.note(f"batches: {start.batches}")
        self._steps = start.steps
        self._bar = self.terminal.bars()
        if self._bar is not None:
            self._task = self._bar.add_task(
                escape(self.name), total=start.steps, completed=start.step, shown=""
            )

    def on_step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def on_log(self, record: Record) -> None:
        shown = _shown(record, self._steps)
        if self._bar is not None:
            self._bar.update(self._task, shown=shown)
        else:
            self.note(f"step {record['step']}/{self._steps}  {shown}")

    def on_evaluate(self, record: Record) -> None:
        names = [name for name in record if name.startswith("eval_")]
        metrics = "  ".join(f"{n.removeprefix('eval_')} {record[n]:.4g}" for n in names)
        when = f"step {record['step']}" if record["step"] else "before training"
        self.note(f"evaluation, {when}: {metrics}")


def _shown(record: Record, steps: int) -> str:
    left = (steps - record["step"]) * record["seconds"] / record["step"]
    memory = record["peak_memory_gib"]
    parts = [
        f"loss {record['loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
        "" if memory is None else f"peak {memory:.2f} GiB",
        f"{timedelta(seconds=int(left))} left",
    ]
    return "  ".join(part for part in parts if part)


def draw_losses(records: Mapping[str, list[Record]], path: Path) -> None:
    """The losses of each adapter over its steps, as a PNG; a run of one gives no name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for number, (adapter, own) in enumerate(records.items()):
        for name, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o--")):
            points = [(r["step"], r[name]) for r in own if name in r]
            if not points:
                continue
            shown = f"{adapter}, {label}" if adapter else label
            color = f"C{number}" if adapter else None
            axes.plot(*zip(*points, strict=True), style, label=shown, color=color)
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)
