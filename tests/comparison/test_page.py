from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from comparison.made import made
from graft.comparison.page import render_page
from graft.visible import visible

LOSSES = {"lora": [1.0, 1.25], "ia3": [2.0, 2.25], "bitfit": [2.125, 3.0]}
NASTY = (
    '</td></svg></style><script>alert(1)</script><img src=x onerror="x"> \'" &amp; {{ 7*7 }} '
    "<a href='https://evil.example'> $x$ <!-- \u202e\x1b"
)
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text; every tag is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, "only there may a tag close itself"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def said(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(made(LOSSES))


@pytest.fixture(scope="module")
def nasty() -> str:
    return render_page(made(LOSSES | {"gone": [None, None]}, said=NASTY))


def test_it_says_what_came_out(page):
    parsed = Page(page)
    cells = parsed.said("td")
    assert {"lora", "1.125", "+0.125", "3.91 KiB", "base model", "4.000"} <= set(cells)
    assert "1.000 to 1.250" in parsed.said("small")
    said = parsed.said("p")
    assert "Not to be told apart: ia3 and bitfit." in said
    assert any(text.startswith("base model a/base: 1.40 M parameters") for text in said)
    assert "Not merged: ia3: No merge." in said
    assert len([tag for tag, _ in parsed.tags if tag == "svg"]) == 5


def test_the_answers_stand_beside_the_bases(page):
    parsed = Page(page)
    for index in range(3):
        assert f"prompt {index}" in parsed.said("div")
    one = ["wanted", "base model", "lora", "ia3", "bitfit"]
    assert parsed.said("dt") == one * 3
    assert parsed.said("dd") == ["wanted", "base", "loss 1.0", "loss 2.0", "loss 2.125"] * 3


def test_a_name_breaks_before_a_value_and_silence_is_told():
    found = made({"lora r=4 learning_rate=0.001": [1.0]})
    (row,) = found.rows
    quiet = tuple(replace(sample, answer="") for sample in row.measured.samples)
    row = replace(row, measured=replace(row.measured, samples=quiet))
    page = render_page(replace(found, rows=(row,)))
    assert page.count("lora r=<wbr>4 learning_rate=<wbr>0.001</td>") == 2  # in each table
    assert Page(page).said("dd")[2::3] == ["(nothing)"] * len(quiet)


def test_settings_are_told_once_where_they_are_shared(page):
    parsed = Page(page)
    assert parsed.said("summary")[:3] == ["lora", "ia3", "bitfit"]
    cells = parsed.said("td")
    assert cells.count("adapter.r") == 3  # 1, 2, 4
    assert cells.count("train.max_steps") == 1
    assert "2.13" in cells
    assert "rows.jsonl" in cells
    assert "train.output_dir" not in cells


def test_full_fine_tuning_has_no_adapter():
    found = made({"lora": [1.0], "full": [2.0]})
    groups = [replace(g, point=replace(g.point, method=g.point.name)) for g in found.groups]
    parsed = Page(render_page(replace(found, groups=tuple(groups))))
    assert parsed.said("td").count("adapter.r") == 1
    assert "full" in parsed.said("td")


def test_one_seed_is_not_ranked():
    parsed = Page(render_page(made({name: losses[:1] for name, losses in LOSSES.items()})))
    assert "rank" not in parsed.said("th")
    assert any(text.startswith("No ranking by loss") for text in parsed.said("p"))


def test_where_all_overlap_there_is_no_rank():
    parsed = Page(render_page(made({"a": [1.0, 2.0], "b": [1.5, 1.75]})))
    assert "rank" not in parsed.said("th")
    assert "1.000 to 2.000" in parsed.said("small")


def test_what_failed_is_said_and_a_point_without_results_stands_in_the_table():
    parsed = Page(render_page(made({"a": [1.0, 1.5], "b": [None, None]})))
    assert "Failed: b with seeds 0 and 1: The loss is gone." in parsed.said("p")
    assert "b" in parsed.said("td")
    assert parsed.said("dt").count("b") == 0
    Page(render_page(made({"b": [None]})))


def test_what_others_wrote_is_text(page, nasty):
    def kinds(text: str) -> set[tuple[str, tuple[str, ...]]]:
        return {(tag, tuple(sorted(attrs))) for tag, attrs in Page(text).tags}

    assert kinds(nasty) <= kinds(page) | {("p", ("class",)), ("wbr", ())}
    parsed = Page(nasty)
    told = visible(NASTY)
    for tag in ("title", "h1", "p", "td", "dt", "dd", "div", "summary"):
        assert any(told in text for text in parsed.said(tag)), tag
    assert "\x1b" not in nasty
    assert "\u202e" not in nasty


def test_nothing_comes_from_elsewhere(page, nasty):
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe", page)
    for text in (page, nasty):
        for tag, attrs in Page(text).tags:
            assert tag not in {"script", "link", "iframe", "img", "object", "image"}
            for name, value in attrs.items():
                assert not name.startswith("on")
                if name in ("href", "src"):
                    assert tag == "use"
                    assert value is not None
                    assert value.startswith("#")
        assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", text))
    policy = next(a for t, a in Page(page).tags if a.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_tables_scroll_in_their_own_box(page):
    boxes = re.findall(r'<div class="box"[^>]*><table>', page)
    assert len(boxes) == page.count("<table>") > 4
    assert re.search(r"\.box \{[^}]*overflow-x: auto", page)


def test_names_in_the_page_are_its_own(page):
    ids = [attrs["id"] for _, attrs in Page(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
@pytest.mark.parametrize("kind", ["page", "nasty"])
def test_a_browser_shows_it_on_a_phone_without_scrolling_sideways(kind, request, tmp_path: Path):
    """The page in a frame as wide as a phone; around it is written how wide it came out."""
    measure = "document.body.append(`WIDE ${f.contentDocument.documentElement.scrollWidth};`)"
    frame = (
        f'<iframe id="f" style="border: 0; width: 390px; height: 800px" onload="{measure}" '
        f'srcdoc="{escape(request.getfixturevalue(kind))}"></iframe>'
    )
    (tmp_path / "phone.html").write_text(frame, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
        str(tmp_path / "phone.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.findall(r"WIDE (\d+);", done.stdout) == ["390"]
