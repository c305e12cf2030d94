from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from comparison.made import BASE_LOSS, made
from graft.comparison.csvfile import to_csv
from graft.comparison.table import print_comparison

LOSSES = {"lora": [1.0, 1.25], "prompt_tuning": [2.0, 2.25], "prefix_tuning": [2.125, 3.0]}


def printed(found, **console) -> str:
    file = io.StringIO()
    print_comparison(found, Console(file=file, **console))
    return file.getvalue()


def cells(text: str, name: str) -> list[list[str]]:
    """The words of each line about `name`, in the order of the tables."""
    return [line.split() for line in text.splitlines() if name in line.split()]


def test_every_figure_is_there():
    text = printed(made(LOSSES))
    quality, cost = cells(text, "lora")
    assert quality == ["1", "lora", "1.125", "1.000", "to", "1.250", "3.104", "+0.125"]
    assert cost == ["lora", "1,000", "3.91", "KiB", "2.00", "3.000", "1,250", "800", "900"]
    assert cells(text, "prompt_tuning")[1][-1] == "800"  # not merged
    assert f"{BASE_LOSS:.3f}" in text
    assert "Not to be told apart: prompt_tuning and prefix_tuning." in text


def test_where_all_overlap_there_is_no_rank():
    text = printed(made({"a": [1.0, 2.0], "b": [1.5, 1.75]}))
    assert cells(text, "b")[0][:5] == ["b", "1.625", "1.500", "to", "1.750"]
    assert "rank" not in text.partition("No ranking")[0]


def test_a_seed_alone_has_no_rank_and_no_range():
    text = printed(made({name: losses[:1] for name, losses in LOSSES.items()}))
    assert cells(text, "lora")[0] == ["lora", "1.000", "2.718", "+0.125"]
    assert "rank" not in text.partition("No ranking")[0]
    assert "range" not in text


def test_it_fits_80_columns():
    text = printed(made(LOSSES), width=80, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    assert all(figure in text for figure in ("3.91 KiB", "+0.125", "prefix_tuning", "1,250"))
    assert "…" not in text


def test_nothing_is_broken_or_coloured_in_a_pipe():
    name = "an_adapter_with_a_long_name " * 8
    text = printed(made({name: [1.0, 2.0], "b": [1.0, 1.5]}), width=80)
    assert sum(name.strip() in line for line in text.splitlines()) == 2
    assert "\x1b" not in text


def test_what_people_wrote_does_nothing_in_a_terminal():
    text = printed(made(LOSSES, said="[red]\x1b[31m\u202e"), width=200, force_terminal=True)
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[red]" in text


def test_csv_has_every_run_unrounded():
    losses = {"a": [1 / 3, None], 'b, "c"\n': [2.0, 2.5]}
    base, *lines = csv.DictReader(io.StringIO(to_csv(made(losses))))
    assert (base["point"], float(base["loss"])) == ("base model", BASE_LOSS)
    assert [line["point"] for line in lines] == ["a", "a", 'b, "c"\n', 'b, "c"\n']
    assert [line["seed"] for line in lines] == ["0", "1", "0", "1"]
    assert float(lines[0]["loss"]) == 1 / 3
    assert (lines[1]["loss"], lines[1]["error"]) == ("", "The loss is gone.")
    assert {line["adapter.r"] for line in lines} == {"1", "2"}
    assert int(lines[2]["peak_bytes"]) == 3 * 2**30
    assert [line["merged"] for line in lines] == ["900.0", "", "", ""]
    assert lines[0]["inference_unit"] == "tokens/s"


@pytest.mark.parametrize("figure", ["peak_bytes", "forgetting"])
def test_what_was_not_measured_has_no_column(figure):
    found = made(LOSSES)
    for group in found.groups:
        del group.figures[figure]
    text = printed(found)
    assert ("GiB" in text, "forgetting" in text) == (
        figure != "peak_bytes",
        figure != "forgetting",
    )
