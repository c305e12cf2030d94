import unicodedata

from graft.visible import visible


def test_nothing_invisible_is_left() -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    shown = visible(every)
    kept = {"\n", "\u200c", "\u200d"}
    hidden = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
    assert hidden == kept
    assert visible("a\nb\tc\x1b[0m\u202e\x7f") == "a↵\nb⇥c␛[0m‹U+202E›‹U+007F›"
    assert visible("Zürich 你好 👩‍👧") == "Zürich 你好 👩‍👧"
