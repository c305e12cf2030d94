"""Names beside what they name in a plot, instead of a legend: at points, and at the ends of lines.

A name is moved until it hides nothing; where that takes it away from its mark, a thin line leads
back. Measured in pixels, so the axes must have their final limits and place when these are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

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
    at = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    pixels = _pixels(axes)
    around = 4 * pixels
    taken = [Bbox.from_extents(x - around, y - around, x + around, y + around) for x, y in at]
    for (x, y), bar in zip(at, bars, strict=True):
        far = Bbox(axes.transData.transform(bar.get_points()))
        taken.append(Bbox.from_extents(x - around / 2, far.y0, x + around / 2, far.y1))
        taken.append(Bbox.from_extents(far.x0, y - around / 2, far.x1, y + around / 2))
    inside = axes.get_window_extent()
    for point, (x, y), name in zip(points, at, names, strict=True):
        note = _write(axes, name, point, (0, 0))
        size = note.get_window_extent()
        choices = list(_around(x, y, size.width, size.height, _GAP * pixels))
        distance, box = min(choices, key=lambda each: _cost(*each, taken, inside))
        note.set_position(((box.x0 - x) / pixels, (box.y0 - y) / pixels))
        if distance > 1 and note.arrow_patch is not None:
            note.arrow_patch.set_visible(True)
        taken.append(box)


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
) -> Iterator[tuple[float, Bbox]]:
    """Boxes of this size around a place, the best first, with how far out they are."""
    for distance in (1, 2.5, 4, 6, 9):
        away = gap * distance
        for left, below in (
            (x + away, y - height / 2),
            (x - away - width, y - height / 2),
            (x - width / 2, y + away),
            (x - width / 2, y - away - height),
            (x + 0.7 * away, y + 0.7 * away),
            (x - 0.7 * away - width, y + 0.7 * away),
            (x + 0.7 * away, y - 0.7 * away - height),
            (x - 0.7 * away - width, y - 0.7 * away - height),
        ):
            yield distance, Bbox.from_bounds(left, below, width, height)


def _cost(distance: float, box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """What a name at `box` would hide, in its own areas; a little for being far away."""
    area = box.width * box.height
    hidden = sum(_shared(box, other) for other in taken)
    return (hidden + 4 * (area - _shared(box, inside))) / area + 0.02 * distance


def _shared(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


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
