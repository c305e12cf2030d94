from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text

from comparison.made import made
from graft.comparison.labels import _spread
from graft.comparison.plots import COLOURS, Curve, draw_curves, draw_plots, make_plots, png, svg

LOSSES = {"lora": [1.0, 1.25], "ia3": [2.0, 2.25], "bitfit": [2.125, 3.0]}
NASTY = '<b>$x^2$ & "q"\x1b\u202e 你好'


def notes_of(figure) -> list:
    return [text for axes in figure.axes for text in axes.texts]


def overlap(a, b) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def test_plots_are_png_files(tmp_path):
    paths = draw_plots(made(LOSSES), tmp_path)
    assert [path.name for path in paths] == [
        "loss-parameters.png",
        "loss-memory.png",
        "loss-time.png",
        "curves-held-out.png",
        "curves-training.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_point_is_its_mean_with_its_range():
    (axes,) = make_plots(made(LOSSES))["loss-memory"].axes
    for place, (container, losses) in enumerate(zip(axes.containers, LOSSES.values(), strict=True)):
        line, _, bars = container
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (place + 2, np.mean(losses))
        ((low, high),) = [segment[:, 1] for bar in bars for segment in bar.get_segments()]
        assert (low, high) == (min(losses), max(losses))


def test_what_was_not_measured_is_not_drawn():
    found = made(LOSSES)
    for group in found.groups:
        del group.figures["peak_bytes"]
    assert "loss-memory" not in make_plots(found)
    assert make_plots(made({"a": [None, None]})) == {}


def test_curves_are_means_over_the_seeds_with_a_band():
    logs = tuple(
        tuple({"step": step, "loss": seed + step / 10} for step in range(0, last, 10))
        for seed, last in ((1, 31), (3, 21))  # the second one stopped early
    )
    (axes,) = draw_curves([Curve("a", logs)]).axes
    assert axes.lines[0].get_xdata().tolist() == [0, 10, 20]
    assert axes.lines[0].get_ydata().tolist() == [2, 3, 4]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 5)


def test_steps_are_whole_numbers():
    log = tuple({"step": step, "loss": 1 / step} for step in range(1, 4))
    (axes,) = draw_curves([Curve("a", (log,))]).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_log_may_hold_anything():
    log = ({"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": "x", "loss": 1.0})
    (axes,) = draw_curves([Curve("a", (log,)), Curve("b", ())]).axes
    assert axes.lines[0].get_xdata().tolist() == [1]


@pytest.mark.parametrize("count", [4, 16])
def test_names_hide_neither_points_nor_each_other(count):
    close = {f"adapter-{i}": [2 + 0.03 * i, 2.05 + 0.03 * i] for i in range(count)}
    for name, figure in make_plots(made(close)).items():
        figure.draw_without_rendering()  # puts them where they belong
        boxes = [Text.get_window_extent(note) for note in notes_of(figure)]
        assert len(boxes) == count
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2)), name
        for axes in figure.axes:
            for container in axes.containers:
                ((x, y),) = axes.transData.transform(container[0].get_xydata())
                assert not any(b.x0 < x < b.x1 and b.y0 < y < b.y1 for b in boxes), name


def test_names_are_as_high_as_their_lines_where_there_is_room():
    assert _spread([10, 50, 30], 5, 0, 100) == [10, 50, 30]
    assert _spread([50, 50], 10, 0, 100) == [45, 55]
    assert _spread([99, 100], 10, 0, 100) == [90, 100]
    crowded = _spread([5] * 11, 50, 0, 100)
    assert np.allclose(crowded, np.arange(0, 101, 10))


def test_more_points_than_can_be_told_apart_are_said_to_be_left_out():
    many = {f"p{i}": [1 + i] for i in range(45)}
    plots = make_plots(made(many))
    (axes,) = plots["loss-time"].axes
    assert "the best 40 of 45" in axes.get_title(loc="left")
    assert {note.get_text() for note in axes.texts} == {f"p{i}" for i in range(40)}
    assert png(plots["curves-training"])


def test_an_svg_is_text_in_the_colour_of_its_page():
    found = made(LOSSES, said=NASTY)
    for name, figure in make_plots(found).items():
        text = svg(figure, name, 'what "it" is')
        assert not re.search(r"https?:|xmlns|#000000|<script|<b>", text)
        root = ElementTree.fromstring(text)
        assert root.get("aria-label") == 'what "it" is'
        said = "".join(root.itertext())
        assert 'lora<b>$x^2$ & "q"␛‹U+202E› 你好' in said
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert all(i.startswith(f"{name}-") for i in ids)
        used = re.findall(r"#([\w-]+?)[\")]", text)
        assert {u for u in used if not re.fullmatch("[0-9a-f]{6}", u)} <= set(ids)


# --- colours ----------------------------------------------------------------------------------

# How protanopes, deuteranopes and tritanopes see linear RGB: Machado, Oliveira and Fernandes
# (2009), table of severity 1.0.
SEEN = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                 [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ rgb.clip(0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_colours_differ_to_everybody(eyes):
    seen = [lab(np.array(SEEN[eyes]) @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize("ground", ["#ffffff", "#1c2024"])  # of a PNG, and of a page in the dark
def test_colours_stand_out_from_the_ground(ground):
    def contrast(colour: str) -> float:
        high, low = sorted((TO_XYZ[1] @ linear(c) for c in (colour, ground)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert min(map(contrast, COLOURS)) > 2.8
