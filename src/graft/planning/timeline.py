"""The course of a step as a picture: bytes in use, by what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graft.atomic import whole_file
from graft.planning.case import Case
from graft.planning.memory import KINDS, Moment
from graft.planning.plan import Plan
from graft.planning.words import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_timeline"]

# What stays throughout is at the bottom, what comes and goes on top.
_COLOURS: dict[str, str] = dict(
    zip(
        KINDS,
        ("#4e5d6c", "#2a9d8f", "#e9c46a", "#f4a261", "#4a90c2", "#c1436d", "#9b72c4", "#6abf69",
         "#b8b8b8"),
        strict=True,
    )
)  # fmt: skip
_HEADROOM = 1.2  # of the scale over the highest peak


def draw_timeline(plan: Plan, path: Path) -> None:
    """Write a PNG: bytes over the moments of each step of `plan`, and where its peak is.

    Args:
        plan: Its cases are drawn one below the other, on one scale.
        path: The file; its folder is made where there is none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [case for case in plan.cases if case.trace is not None]
    unit, name = unit_of(case.peak for case in cases)
    top = _HEADROOM * max(case.peak for case in cases) / unit
    figure = Figure(figsize=(10, 1.2 + 3.2 * len(cases)), layout="constrained")
    rows = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for axes, case in zip(rows, cases, strict=True):
        axes.set_ylabel(f"memory ({name})")
        axes.set_title(_title(plan, case), loc="left")
        axes.set_ylim(0, top)
        _draw(axes, case, unit, name)
        free = plan.device.free_bytes / unit
        if free < top:
            axes.axhline(free, color="#c0392b", linewidth=1.2)
            axes.annotate(
                f"free on {plan.device.name}",
                (0, free),
                (4, 5),
                textcoords="offset points",
                color="#c0392b",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    with whole_file(path) as partial:
        FigureCanvasAgg(figure).print_png(partial)


def _title(plan: Plan, case: Case) -> str:
    again = ", gradient checkpointing" if case.way.gradient_checkpointing else ""
    return f"{case.learner.name} on {plan.source}, base in {case.way.base.name}{again}"


def _draw(axes: Axes, case: Case, unit: int, name: str) -> None:
    moments = case.memory.timeline
    kinds = [kind for kind in KINDS if any(moment.bytes[kind] for moment in moments)]
    axes.stackplot(
        range(len(moments)),
        [[moment.bytes[kind] / unit for moment in moments] for kind in kinds],
        labels=kinds,
        colors=[_COLOURS[kind] for kind in kinds],
    )
    at = max(range(len(moments)), key=lambda i: moments[i].total)
    peak = moments[at].total / unit
    axes.plot([at], [peak], "v", color="black")
    middle = at < len(moments) / 2
    axes.annotate(
        f"{peak:,.2f} {name}: {case.memory.where}",
        (at, peak),
        (6 if middle else -6, 6),
        textcoords="offset points",
        ha="left" if middle else "right",
    )
    axes.set_xlim(0, max(len(moments) - 1, 1))
    stages = _stages(moments)
    ends = [start for start, _ in stages[1:]] + [len(moments) - 1]
    middles = [(start + end) / 2 for (start, _), end in zip(stages, ends, strict=True)]
    narrow = [end - start < len(moments) / 10 for (start, _), end in zip(stages, ends, strict=True)]
    named = zip(stages, narrow, strict=True)
    # A narrow stage is named a line lower, beside its neighbours.
    axes.set_xticks(middles, ["\n" * small + stage for (_, stage), small in named])
    axes.tick_params(axis="x", length=0)
    for start, _ in stages[1:]:
        axes.axvline(start, color="white", linewidth=1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )


def _stages(moments: Sequence[Moment]) -> list[tuple[int, str]]:
    """Where each stage of the step begins: the phases up to their first comma."""
    out: list[tuple[int, str]] = []
    for index, moment in enumerate(moments):
        stage = moment.phase.partition(",")[0]
        if not out or out[-1][1] != stage:
            out.append((index, stage))
    return out
