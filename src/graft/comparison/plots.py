"""What a comparison found, and the curves of runs, as plots: PNG files and SVG for a page.

Marks are named where they are, by `labels`; no legend has to be looked up. Colours differ for
colour-blind people too, on light and on dark ground, and are never the only thing that differs.
Error bars and bands go from the lowest seed to the highest.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from graft.atomic import write_bytes
from graft.comparison.labels import end_width, label_ends, label_points
from graft.comparison.results import Comparison, Group, Spread

__all__ = ["COLOURS", "Curve", "draw_curves", "draw_plots", "make_plots", "png", "svg"]

COLOURS = ("#0097f2", "#ff6000", "#7f7846", "#bf00a7", "#99546e", "#794cff")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("solid", "dashed", "dashdot", "dotted")
_WIDTH, _HEIGHT, _DPI = 5.2, 3.7, 200  # inches; small, so that text stays readable on a phone
_AT_MOST = 40  # names that can be told apart in one plot
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC",
          "Microsoft YaHei", "SimHei", "Arial Unicode MS")  # fmt: skip
_TITLES = {"eval_loss": "loss on held-out rows", "loss": "training loss"}
_GIB = 2**30


@dataclass(frozen=True)
class Curve:
    """A name and the logs behind it, one a seed: records with `step`, `loss`, `eval_loss`."""

    name: str
    logs: tuple[tuple[dict[str, Any], ...], ...]


def make_plots(found: Comparison) -> dict[str, Figure]:
    """The plots of a comparison by name; those for which nothing was measured are not there."""
    wanted: list[tuple[str, str, Callable[[Group], Spread | None]]] = [
        ("parameters", "trainable parameters", _figure("trainable_parameters")),
        ("memory", "peak memory in training (GiB)", _figure("peak_bytes", _GIB)),
        ("time", "training time (s)", _figure("seconds")),
    ]
    plots: dict[str, Figure] = {}
    for name, label, of in wanted:
        points = [
            (group.point.name, x, y)
            for group in found.groups
            if (x := of(group)) is not None and (y := group.figures.get(found.metric)) is not None
        ]
        if points:
            plots[f"{found.metric}-{name}"] = _scatter(points, label, found)
    curves = [
        Curve(group.point.name, tuple(r.measured.log for r in found.rows
                                      if r.point == group.point.name and r.measured))
        for group in found.groups
    ]  # fmt: skip
    for name, key in (("curves-held-out", "eval_loss"), ("curves-training", "loss")):
        if any(_lines(curve, key) for curve in curves):
            plots[name] = draw_curves(curves, [key])
    return plots


def draw_plots(found: Comparison, folder: Path) -> list[Path]:
    """Write the plots of a comparison into a folder as PNG files; returns these."""
    plots = {folder / f"{name}.png": figure for name, figure in make_plots(found).items()}
    for path, figure in plots.items():
        write_bytes(path, png(figure))
    return list(plots)


def draw_curves(curves: Sequence[Curve], keys: Sequence[str] = ("eval_loss", "loss")) -> Figure:
    """Losses over the steps, one panel for each of `keys` that is in a log."""
    panels = [key for key in keys if any(_lines(curve, key) for curve in curves)]
    shown = curves[:_AT_MOST]
    with _style():
        room = end_width([curve.name for curve in shown])
        height = max(0.85 * _HEIGHT, 0.19 * len(shown)) * len(panels)
        figure = _new_figure(max(_WIDTH, 3.5 + room), height)
        all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        ends = [_curve_panel(axes, shown, key) for axes, key in zip(all_axes, panels, strict=True)]
        all_axes[-1].set_xlabel("step")
        for axes in all_axes:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(shown) < len(curves):
            figure.suptitle(f"the first {len(shown)} of {len(curves)}", fontsize=10)
        _settle(figure, room)
        for axes, end in zip(all_axes, ends, strict=True):
            label_ends(axes, list(end.values()), list(end))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` to put into a page.

    It takes the page's font and text colour, is as wide as its place, and names no address.

    Args:
        figure: What to show.
        name: Goes before its ids; another one for each figure of a page.
        description: What it shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    with _style(), rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag == "text":
            element.set("fill", "currentColor")
        element.attrib = {
            key.rpartition("}")[2]: _own(key, value, name) for key, value in element.items()
        }
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    """An attribute's value with ids that are this figure's, and the page's colour of text."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{name}-")
    value = value.replace("url(#", f"url(#{name}-").replace("#000000", "currentColor")
    if key == "style" and "font:" in value:
        size = value.partition("font:")[2].split()[0]
        value = f"{value}; font: {size} inherit"
    return value


# --- quality against cost ---------------------------------------------------------------------


def _figure(name: str, unit: float = 1) -> Callable[[Group], Spread | None]:
    def read(group: Group) -> Spread | None:
        found = group.figures.get(name)
        if found is None:
            return None
        return Spread(found.mean / unit, found.low / unit, found.high / unit)

    return read


def _scatter(points: Sequence[tuple[str, Spread, Spread]], label: str, found: Comparison) -> Figure:
    sign = -1 if found.higher_is_better else 1
    shown = sorted(points, key=lambda point: sign * point[2].mean)[:_AT_MOST]
    kept = [point for point in points if point in shown]
    with _style():
        growth = max(1, len(kept) / 10) ** 0.5
        figure = _new_figure(_WIDTH * growth, _HEIGHT * growth)
        axes = figure.subplots()
        for index, (_, x, y) in enumerate(kept):
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=_bars(x),
                yerr=_bars(y),
                **_look(index),
                linestyle="none",
                elinewidth=1,
                capsize=2.5,
            )
        if min(x.low for _, x, _ in kept) * 10 < max(x.high for _, x, _ in kept):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        better = "higher" if found.higher_is_better else "lower"
        axes.set_xlabel(label)
        axes.set_ylabel(f"{found.metric.replace('_', ' ')} ({better} is better)")
        axes.set_title(_about(found, len(kept), len(points)), loc="left", fontsize=10)
        axes.margins(0.12)
        _settle(figure)
        label_points(
            axes,
            [(x.mean, y.mean) for _, x, y in kept],
            [name for name, _, _ in kept],
            [Bbox.from_extents(x.low, y.low, x.high, y.high) for _, x, y in kept],
        )
    return figure


def _short(value: float) -> str:
    """`20k`, `1.5M`, and small numbers as they are."""
    return EngFormatter(sep="").format_eng(value) if value >= 1000 else f"{value:g}"


def _about(found: Comparison, shown: int, all_points: int) -> str:
    seeds = len(found.seeds)
    parts = [f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"]
    if (base := found.base.quality.get(found.metric)) is not None:
        parts.append(f"base model {base:.4g}")
    if shown < all_points:
        parts.append(f"the best {shown} of {all_points}")
    return "; ".join(parts)


def _bars(spread: Spread) -> list[list[float]] | None:
    if spread.low == spread.high:
        return None
    return [[spread.mean - spread.low], [spread.high - spread.mean]]


# --- curves -----------------------------------------------------------------------------------


def _lines(curve: Curve, key: str) -> list[dict[float, float]]:
    """Value by step, for each seed that has any."""
    lines = [
        {record["step"]: record[key] for record in log if _drawable(record, key)}
        for log in curve.logs
    ]
    return [line for line in lines if line]


def _drawable(record: Mapping[str, Any], key: str) -> bool:
    """Whether there is a value; a log may hold anything."""
    values = (record.get("step"), record.get(key))
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _curve_panel(axes: Axes, curves: Sequence[Curve], key: str) -> dict[str, tuple[float, float]]:
    """Draw one line a curve; returns where they end."""
    ends: dict[str, tuple[float, float]] = {}
    seeds = 1
    for index, curve in enumerate(curves):
        lines = _lines(curve, key)
        if not lines:
            continue
        seeds = max(seeds, len(lines))
        steps = sorted(set.intersection(*map(set, lines)))  # a seed may have stopped early
        values = [[line[step] for line in lines] for step in steps]
        mean = [sum(each) / len(each) for each in values]
        look = _look(index) | ({"marker": ""} if len(steps) > 1 else {})
        (line,) = axes.plot(steps, mean, linestyle=_DASHES[index // len(COLOURS) % len(_DASHES)])
        line.set(**look)
        if len(lines) > 1:
            low, high = [min(each) for each in values], [max(each) for each in values]
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        if steps:
            ends[curve.name] = (steps[-1], mean[-1])
    note = f"; mean and range of {seeds} seeds" if seeds > 1 else ""
    axes.set_title(f"{_TITLES[key]}{note}", loc="left", fontsize=10)
    axes.margins(x=0.02)
    return ends


# --- the look ---------------------------------------------------------------------------------


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5.5,
        "linewidth": 1.5,
    }


@contextmanager
def _style() -> Iterator[None]:
    here = {font.name for font in fontManager.ttflist}
    fonts = [name for name in _FONTS if name in here]
    settings: dict[Any, Any] = {
        "font.family": fonts,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.18,
        "grid.color": "black",
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is drawn
        yield


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _settle(figure: Figure, room: float = 0) -> None:
    """Let the layout come to rest, with so many inches free at the right."""
    figure.set_layout_engine("constrained", rect=(0, 0, 1 - room / figure.get_figwidth(), 1))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
