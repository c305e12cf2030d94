"""A plan as people read it: in a terminal of 80 columns, or whole in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from graft.download import size_text
from graft.planning.advice import Change
from graft.planning.case import FULL, Case, Way
from graft.planning.formulas import BASES, Arithmetic
from graft.planning.memory import KINDS
from graft.planning.plan import Plan
from graft.planning.words import (
    decimal_size,
    digits,
    duration_text,
    seconds_text,
    short_size,
    unit_of,
)
from graft.training.rehearsal import spark

__all__ = ["show_arithmetic", "show_plan"]

_BARS = 24  # of the histogram of passes
_WIDE = 120  # columns that all kinds of memory take
_TOGETHER = {
    "weights": ("weights",),
    "learned": ("adapter", "gradients", "optimizer"),
    "activ.": ("activations",),
    "logits": ("logits",),
    "other": ("recomputation", "prefix", "workspace"),
}


def show_plan(plan: Plan) -> None:
    """Print `plan`; nothing is cut short in a pipe."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    for part in _parts(plan, console.width):
        console.print(part, soft_wrap=not console.is_terminal)


def show_arithmetic(found: Arithmetic) -> None:
    """Print what a number of parameters tells."""
    console = Console(highlight=False, markup=False)
    size = found.weights // found.parameters
    console.print(
        f"{found.parameters:,} parameters in {found.base.dtype}, full fine-tuning with AdamW",
        style="bold",
    )
    rows = (
        ("weights", found.weights, f"{found.parameters:,} x {size} bytes"),
        ("gradients", found.gradients, "one for each weight"),
        ("optimizer", found.optimizer, "AdamW keeps two averages of each gradient"),
        ("together", found.together, size_text(found.together)),
    )
    console.print(_grid([(name, decimal_size(count), about) for name, count, about in rows]))
    console.print(
        f"Left out: {', '.join(found.left_out[:-1])}, and {found.left_out[-1]}. "
        "`graft plan MODEL --method full` counts them.",
        soft_wrap=not console.is_terminal,
    )


def _grid(rows: Sequence[tuple[str, str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold", style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def _parts(plan: Plan, width: int) -> Iterator[RenderableType]:
    """What is printed, from top to bottom."""
    first = next(case for case in plan.cases if case.trace is not None)
    yield Text(
        f"{plan.model_class}, {plan.task_type}: {plan.parameters:,} parameters", style="bold"
    )
    yield from _facts(plan, first)
    yield ""
    if len(plan.cases) == 1:
        yield _terms(plan, first)
    else:
        yield Text(f"at the peak, {_way(plan.case.way)}", style="bold")
        yield _kinds_table(plan, width)
    if plan.alternatives:
        yield ""
        yield from _ways(plan)
    if len(plan.cases) == 1:
        yield ""
        yield Text(plan.verdict(), style="green" if plan.fits else "red")
        yield from _changes(plan)
    for case in plan.cases:
        if case.problem:
            yield Text(f"! {case.learner.name}: {case.problem}", style="yellow")


def _facts(plan: Plan, first: Case) -> Iterator[str]:
    """Where, on which rows, and how."""
    device, rows = plan.device, first.workload
    free = f"{size_text(device.free_bytes)} free"
    if not device.here or device.free_bytes == device.total_bytes:
        free = f"{size_text(device.total_bytes)} to fit"
    yield f"device: {device.name}, {free}"
    each = "1 pass a step" if rows.passes == 1 else f"{rows.passes} passes a step"
    count = len(rows.longest)
    if rows.sizes:
        low, high = rows.sizes[0], rows.sizes[-1]
        mean = sum(rows.sizes) / len(rows.sizes)
        yield (
            f"rows: {each}, of {low:,} to {high:,} tokens, {mean:,.0f} on average "
            f"{_histogram(rows.sizes)}"
        )
        yield f"the longest ({count} rows) decides the peak, the mean decides the time"
    else:
        told = "1 row" if count == 1 else f"{count} rows"
        yield f"rows: {each}, of {told} of {rows.length:,} tokens"
    assert first.trace is not None
    yield first.trace.how


def _histogram(sizes: Sequence[int]) -> str:
    """How many passes there are of each size, the smallest first."""
    low, high = sizes[0], sizes[-1]
    counts = [0] * min(_BARS, high - low + 1)
    for size in sizes:
        counts[min(len(counts) * (size - low) // max(high - low, 1), len(counts) - 1)] += 1
    return spark(counts)


def _way(way: Way) -> str:
    again = ", with gradient checkpointing" if way.gradient_checkpointing else ""
    return f"with the base model in {way.base.name}{again}"


# --- one thing --------------------------------------------------------------------------------


def _terms(plan: Plan, case: Case) -> Table:
    """The kinds of memory of one step, one below the other, and how each comes about."""
    memory, trace = case.memory, case.trace
    assert trace is not None
    about = _explained(case)
    rows = [
        (kind, short_size(getattr(memory, kind)), about[kind])
        for kind in KINDS
        if getattr(memory, kind)
    ]
    rows.append(("peak", short_size(memory.peak), memory.where))
    margin = plan.device.margin
    rows.append(
        ("margin", short_size(margin.over(memory.peak)), f"what the device takes, {margin.how}")
    )
    time, workload = case.time, case.workload
    if time is not None:
        told = f"{seconds_text(time.low)} to {seconds_text(time.high)}, {time.how}"
        rows.append(("step", seconds_text(time.seconds), told))
        rows.append(("tokens/s", f"{time.tokens_per_second:,.0f}", ""))
        if workload.steps_per_epoch and workload.steps:
            epoch = duration_text(time.seconds * workload.steps_per_epoch)
            rows.append(("epoch", epoch, f"{workload.steps_per_epoch:,} steps"))
            low, high = (duration_text(s * workload.steps) for s in (time.low, time.high))
            whole = duration_text(time.seconds * workload.steps)
            rows.append(("run", whole, f"{workload.steps:,} steps, {low} to {high}"))
    return _grid(rows)


def _explained(case: Case) -> dict[str, str]:
    """How each kind of memory comes about."""
    trace, way = case.trace, case.way
    assert trace is not None
    rows = case.workload.longest
    tokens = sum(row.tokens for row in rows)
    numbers = f"{trace.trainable:,} numbers that learn"
    full = case.learner.name == FULL
    kept = "the inputs of layers" if way.gradient_checkpointing else "kept for the backward pass"
    return {
        "weights": f"{case.base_parameters:,} parameters in {way.base.name}",
        "adapter": f"{case.learner.name}: {numbers}",
        "gradients": numbers if full else "one for each of these",
        "optimizer": "AdamW keeps two averages of each gradient",
        "activations": f"{kept}, of {tokens:,} tokens in {len(rows):,} rows",
        "logits": "and the loss, "
        + ("of labelled tokens alone, in chunks" if trace.packed else "of every position"),
        "recomputation": "of the layer that is gone through again",
        "prefix": "virtual tokens, and what makes them",
        "workspace": "results on their way, and the batch",
    }


def _changes(plan: Plan) -> Iterator[RenderableType]:
    """What would need less."""
    if not plan.advice:
        return
    yield ""
    told = "would need less:" if plan.fits else "would fit, the cheapest change first:"
    yield Text(told, style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("change", overflow="fold")
    table.add_column("peak", no_wrap=True, justify="right")
    table.add_column("time", no_wrap=True, justify="right")
    for change in plan.advice:
        table.add_row(_told(change), short_size(change.case.peak), _times(change))
    yield table
    if any(change.overrides is None for change in plan.advice):
        yield "* not a setting of run files, which train on bases in fp32 or bf16"


def _told(change: Change) -> str:
    return change.words if change.overrides is not None else f"{change.words} *"


def _times(change: Change) -> str:
    time = change.case.time
    told = "" if time is None else seconds_text(time.seconds)
    return told if change.times is None else f"{told}, {change.times:.2g}x"


# --- side by side -----------------------------------------------------------------------------


def _kinds_table(plan: Plan, width: int) -> Table:
    """A line for each method, a column for each kind of memory at its peak."""
    columns = {kind: (kind,) for kind in KINDS} if width >= _WIDE else _TOGETHER
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for column in (*columns, "peak", "step"):
        table.add_column(column, no_wrap=True, justify="right")
    for case in plan.cases:
        if case.trace is None:
            table.add_row(case.learner.name, Text("does not work", style="yellow"))
            continue
        sums = [sum(getattr(case.memory, kind) for kind in kinds) for kinds in columns.values()]
        style = "green" if plan.device.fits(case.peak) else "red"
        step = "" if case.time is None else seconds_text(case.time.seconds)
        peak = Text(short_size(case.peak), style=style)
        table.add_row(case.learner.name, *map(short_size, sums), peak, step)
    return table


def _ways(plan: Plan) -> Iterator[RenderableType]:
    """The peaks on each base, without and with checkpointing."""
    every = [case for case in (*plan.cases, *plan.alternatives) if case.trace is not None]
    peaks = {
        (case.learner.name, case.way.base, case.way.gradient_checkpointing): case.peak
        for case in every
    }
    unit, name = unit_of(peaks.values())
    bases = [base for base in BASES if any(key[1] == base for key in peaks)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for base in bases:
        table.add_column(base.name, no_wrap=True, justify="right")
    for learner in dict.fromkeys(case.learner.name for case in every):
        cells = [
            Text(" / ").join(
                _peak(peaks.get((learner, base, again)), unit, plan) for again in (False, True)
            )
            for base in bases
        ]
        table.add_row(learner, *cells)
    told = f"the peak in {name} on each base, without / with gradient checkpointing"
    yield Text(told, style="bold")
    yield table
    if any(not plan.device.fits(peak) for peak in peaks.values()):
        yield f"! does not fit {plan.device.name}, margin included"


def _peak(peak: int | None, unit: int, plan: Plan) -> Text:
    if peak is None:
        return Text("-", style="dim")
    fits = plan.device.fits(peak)
    return Text(digits(peak / unit) + ("" if fits else "!"), style="green" if fits else "red")
