import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.preview import preview, render_page
from graft.visible import visible

Write = Callable[..., str]
NASTY = '</div><script>alert(1)</script> <img src=x onerror="x"> \'" &amp; {{ 7*7 }} <!-- \u202e'


class Page(HTMLParser):
    """The tags of a page, and its tokens: text and what they tell when pointed at."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)
        if "data-t" in dict(attrs):
            self.tokens.append((dict(attrs)["class"] or "", dict(attrs)["data-t"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "span" and self.tokens and not self.tokens[-1][2]:
            self.tokens[-1] = (*self.tokens[-1][:2], data)


def page_of(
    tokenizer: PreTrainedTokenizerBase, path: str, task_type: TaskType = TaskType.CAUSAL_LM
) -> tuple[str, list]:
    found = preview(DataConfig(train=path, max_length=400), tokenizer, task_type)
    return render_page(found, "a <model>"), found


def test_every_token_is_there_and_says_what_it_is(
    chatml: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    path = jsonl([{"prompt": "你好\n\n龘 <b>", "completion": NASTY}])
    page, (found,) = page_of(chatml, path)
    pieces = found.shown[0].sides[0].pieces
    parsed = Page(page)
    assert parsed.open == []
    assert [text for _, _, text in parsed.tokens] == [visible(piece.text) for piece in pieces]
    for (kind, told, _), piece in zip(parsed.tokens, pieces, strict=True):
        assert ("l" in kind.split(), "s" in kind.split()) == (piece.learned, piece.special)
        assert told == "   ".join(
            f"{i} {name}" for i, name in zip(piece.ids, piece.names, strict=True)
        )


@pytest.mark.parametrize("kind", ["chatml", "byte_level"])
def test_what_is_in_the_data_is_text(
    kind: str, jsonl: Write, request: pytest.FixtureRequest
) -> None:
    path = jsonl([{"prompt": NASTY, "completion": NASTY}], "<i>.jsonl")
    page, _ = page_of(request.getfixturevalue(kind), path)
    tags = {tag for tag, _ in Page(page).tags}
    assert tags == {"html", "head", "meta", "title", "style", "body", "h1", "p", "span", "h2",
                    "article", "header", "b", "div"}  # fmt: skip
    assert "<script" not in page
    assert "49" not in re.sub(r'data-t="[^"]*"', "", page)  # the data is no template


def test_it_needs_nothing_from_elsewhere(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    page, _ = page_of(chatml, jsonl([{"prompt": "a", "completion": "b"}]))
    source = files("graft.data.preview").joinpath("page.html.j2").read_text(encoding="utf-8")
    for text in (page, source):
        assert not re.search(r"//|url\(|@import|\bsrc=|\bhref=|<script|<link|<iframe", text)
    policy = next(a for t, a in Page(page).tags if a.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_it_fits_a_phone_and_the_dark(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    page, _ = page_of(chatml, jsonl([{"prompt": "a", "completion": "b"}]))
    metas = {a["name"]: a["content"] for _, a in Page(page).tags if a.get("name")}
    assert metas == {
        "viewport": "width=device-width, initial-scale=1",
        "color-scheme": "light dark",
    }
    assert "prefers-color-scheme: dark" in page
    # A colour for each name in both schemes.
    light, dark = re.findall(r":root \{(.*?)\}", page, re.S)
    names = re.compile(r"--[a-z]+(?=:)")
    assert set(names.findall(light)) == set(names.findall(dark)) != set()


def test_words_have_their_labels_above(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"tokens": ["The", "cat"], "tags": ["O", "B-pet<"]}])
    page, _ = page_of(wordpiece, path, TaskType.TOKEN_CLS)
    labels = re.findall(r"<rt[^>]*>([^<]*)</rt>", page)
    assert labels == ["", "O", "B-pet&lt;", ""]


def test_sides_and_parts(with_bos: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"input": "the cat", "target": "the mat"}])
    page, _ = page_of(with_bos, path, TaskType.SEQ_2_SEQ_LM)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["source", "target"]
    page, _ = page_of(with_bos, jsonl([{"text": "the cat " * 900}]))
    assert "row 1, part 2 of " in page
    assert re.search(r"and \d+ more of this row", page)
