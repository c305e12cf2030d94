"""A comparison as one file of HTML, laid out by `page.html.j2`, with its plots inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from graft.comparison.difference import flat_settings
from graft.comparison.figures import about, base_figures, columns
from graft.comparison.plots import make_plots, svg
from graft.comparison.ranking import ordered, verdict
from graft.comparison.results import FULL, Comparison, Group, Sample
from graft.pages import render
from graft.visible import visible

__all__ = ["render_page"]

_SHARED_BY_RUNS = {"train.seed"}  # differs from run to run, and says nothing of a point


@dataclass(frozen=True)
class _Answered:
    """One input with what the base model and each point said to it."""

    sample: Sample
    answers: tuple[tuple[str, str], ...]


def render_page(found: Comparison) -> str:
    """The HTML of a comparison; it opens without a network."""
    quality, cost = columns(found)
    groups = ordered(found)
    shared, own = _settings(found, groups)
    return render(
        "graft.comparison",
        "page.html.j2",
        {"shown": _shown},
        found=found,
        about=about(found),
        when=f"{found.created_at[:16].replace('T', ' ')} UTC",
        verdict=verdict(found),
        groups=groups,
        tables=[("Quality", quality), ("Cost", cost)],
        base=base_figures(found),
        plots=[
            (_caption(name, found), Markup(svg(figure, name, _caption(name, found))))
            for name, figure in make_plots(found).items()
        ],
        samples=_samples(found, groups),
        notes=_notes(found),
        shared=shared,
        own=own,
    )


def _caption(name: str, found: Comparison) -> str:
    if name.startswith("curves"):
        return f"Learning curves, {name.partition('-')[2].replace('-', ' ')}"
    measure = found.metric.replace("_", " ").capitalize()
    return f"{measure} against {name.rpartition('-')[2]}"


def _samples(found: Comparison, groups: Sequence[Group]) -> list[_Answered]:
    """The first seed of each point answers for it."""
    of: dict[str, tuple[Sample, ...]] = {}
    for row in found.rows:
        if row.measured is not None:
            of.setdefault(row.point, row.measured.samples)
    names = [group.point.name for group in groups if group.point.name in of]
    count = min((len(of[name]) for name in names), default=0)
    return [
        _Answered(
            sample=of[names[0]][index],
            answers=tuple((name, of[name][index].answer) for name in names),
        )
        for index in range(count)
    ]


def _notes(found: Comparison) -> list[str]:
    """Why adapters were not merged."""
    names: dict[str, dict[str, None]] = {}
    for row in found.rows:
        if row.measured is not None and (why := row.measured.inference.note):
            names.setdefault(why, {})[row.point] = None
    return [f"Not merged: {', '.join(own)}: {why}" for why, own in names.items()]


def _settings(
    found: Comparison, groups: Sequence[Group]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all runs were set to, and what each point was set to besides."""
    of: dict[str, dict[str, Any]] = {}
    methods = {group.point.name: group.point.method for group in groups}
    for row in found.rows:
        if row.point not in of:
            full = {"adapters": {FULL: {"method": FULL}}} if methods[row.point] == FULL else {}
            of[row.point] = flat_settings({**row.config, **full})
    names = dict.fromkeys(key for settings in of.values() for key in settings)
    shared: dict[str, Any] = {}
    for key in names:
        first, *others = [settings.get(key) for settings in of.values()]
        if key not in _SHARED_BY_RUNS and all(other == first for other in others):
            shared[key] = first
    own = {
        group.point.name: {
            key: value
            for key, value in of[group.point.name].items()
            if key not in shared and key not in _SHARED_BY_RUNS and value is not None
        }
        for group in groups
    }
    return shared, own


def _shown(value: Any) -> str:
    return "-" if value is None else visible(str(value))
