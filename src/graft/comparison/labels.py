"""Names beside what they name in a plot, instead of a legend: at points, and at the ends of lines.

A name is moved until it hides nothing; where that takes it away from its mark, a thin line leads
back. Measured in pixels, so the axes must have their final limits and place when these are called.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from graft.visible import visible

__all__ = ["end_width", "label_ends", "label_points"]

_SIZE = 9.5  # points
_LETTERS = 40  # of a name that are shown
_GAP = 6.0  # between a mark and its name, in points
_LEADER = {"arrowstyle": "-", "color": "black", "alpha": 0.45, "linewidth": 0.6, "shrinkB": 3}
Place = tuple[float, float]


def label_points(
    axes: Axes, points: Sequence[Place], names: Sequence[str], bars: Sequence[Bbox]
) -> None:
    """Write each name near its point, where it hides no point, no error bar and no other name.

    Args:
        axes: Where the points are.
        points: In the axes' data.
        names: As many.
        bars: From where to where the error bars of each point go, in the axes' data.
    """
    pixels = _pixels(axes)
    around = 4 * pixels
    at = axes.transData.transform(points)
    low, high = (
        axes.transData.transform([getattr(bar, c) for bar in bars]) for c in ("min", "max")
    )
    taken = np.concatenate(  # [boxes, 4]: of the marks, of their error bars up and sideways
        [
            np.hstack([at - around, at + around]),
            np.stack([at[:, 0] - 1, low[:, 1], at[:, 0] + 1, high[:, 1]], axis=1),
            np.stack([low[:, 0], at[:, 1] - 1, high[:, 0], at[:, 1] + 1], axis=1),
        ]
    )
    inside = np.array(axes.get_window_extent().extents)
    for point, (x, y), name in zip(points, at, names, strict=True):
        note = _write(axes, name, point, (0, 0))
        note.set_verticalalignment("bottom")
        size = Text.get_window_extent(note)  # an annotation's would have its line in it
        distances, boxes = _around(x, y, size.width, size.height, _GAP * pixels)
        best = int(np.argmin(_hidden(boxes, taken, inside) + 0.02 * distances))
        note.set_position(((boxes[best, 0] - x) / pixels, (boxes[best, 1] - y) / pixels))
        if distances[best] >= 2 and note.arrow_patch is not None:
            note.arrow_patch.set_visible(True)
        taken = np.vstack([taken, boxes[best]])


def label_ends(axes: Axes, points: Sequence[Place], names: Sequence[str]) -> None:
    """Write each name to the right of the axes, as high as its line ends, one above the other."""
    if not points:
        return
    pixels = _pixels(axes)
    wanted = [y for _, y in axes.transData.transform(points)]
    box = axes.get_window_extent()
    heights = _spread(wanted, 1.25 * _SIZE * pixels, box.y0, box.y1)
    for point, (x, y), height, name in zip(
        points, axes.transData.transform(points), heights, names, strict=True
    ):
        right = box.x1 + _GAP * pixels
        note = _write(axes, name, point, ((right - x) / pixels, (height - y) / pixels))
        note.set_verticalalignment("center")
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(True)


def end_width(names: Sequence[str]) -> float:
    """Inches that `label_ends` needs to the right of the axes."""
    letters = min(max(map(len, names), default=0), _LETTERS)
    return letters * 0.6 * _SIZE / 72 + 0.2


def _write(axes: Axes, name: str, point: Place, offset: Place) -> Annotation:
    note = axes.annotate(
        visible(name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"),
        point,
        offset,
        textcoords="offset points",
        fontsize=_SIZE,
        parse_math=False,  # a name with dollars is a name
        arrowprops={**_LEADER, "relpos": (0, 0.5)},
        annotation_clip=False,
    )
    note.set_in_layout(False)
    if note.arrow_patch is not None:
        note.arrow_patch.set_visible(False)
    return note


def _pixels(axes: Axes) -> float:
    """Pixels to a point."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi / 72


def _around(
    x: float, y: float, width: float, height: float, gap: float
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Boxes of this size around a place, the best first, and how far out they are."""
    distances, corners = [], []
    for distance in (1, 2.5, 4, 6, 9):
        away = gap * distance
        aslant = 0.7 * away
        distances += [distance + place / 8 for place in range(8)]
        corners += [
            (x + away, y - height / 2),
            (x - away - width, y - height / 2),
            (x - width / 2, y + away),
            (x - width / 2, y - away - height),
            (x + aslant, y + aslant),
            (x - aslant - width, y + aslant),
            (x + aslant, y - aslant - height),
            (x - aslant - width, y - aslant - height),
        ]
    lower = np.array(corners)
    return np.array(distances), np.hstack([lower, lower + np.array([width, height])])


def _hidden(
    boxes: NDArray[np.floating], taken: NDArray[np.floating], inside: NDArray[np.floating]
) -> NDArray[np.floating]:
    """What a name at each of `boxes` would hide and what of it would stick out, in its areas."""
    areas = _shared(boxes, boxes).diagonal()
    out = areas - _shared(boxes, inside[None])[:, 0]
    return (_shared(boxes, taken).sum(axis=1) + 4 * out) / areas


def _shared(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """The area that each box of `a` shares with each of `b`, [a, b]."""
    lower = np.maximum(a[:, None, :2], b[None, :, :2])
    upper = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (upper - lower).clip(0).prod(axis=2)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, in their order, at least `gap` apart, in `low` to `high`."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    up = [wanted[index] for index in order]
    down = list(up)
    last = len(order) - 1
    for place in range(last):
        up[place + 1] = max(up[place + 1], up[place] + gap)
        down[last - place - 1] = min(down[last - place - 1], down[last - place] - gap)
    heights = [(a + b) / 2 for a, b in zip(up, down, strict=True)]  # both keep apart, so this does
    placed = {}
    for place, index in enumerate(order):
        room_above, room_below = (last - place) * gap, place * gap
        placed[index] = min(max(heights[place], low + room_below), high - room_above)
    return [placed[index] for index in range(len(wanted))]
