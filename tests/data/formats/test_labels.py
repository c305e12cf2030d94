from typing import Any

import pytest

from graft.data.formats import read_label, read_tags
from graft.errors import DataError


def test_labels() -> None:
    assert read_label({"text": "a", "label": 3}) == ("a", None, "3")
    assert read_label({"text": "a", "text_pair": "b", "label": "x"}) == ("a", "b", "x")
    for row, message in [
        ({"text": "a", "label": None}, "no label"),
        ({"text": "a", "label": ""}, "no label"),
        ({"text": "a"}, "no label"),
        ({"text": "a", "label": 0.5}, "0.5: expected text or a whole number"),
        ({"text": "", "label": 1}, "text is empty"),
    ]:
        with pytest.raises(DataError) as error:
            read_label(row)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("tags", "expected"), [(["O", "B-x"], ["O", "B-x"]), ([0, -100], ["0", "-100"])]
)
def test_tags(tags: list[Any], expected: list[str]) -> None:
    assert read_tags({"tokens": ["a", "b"], "tags": tags}) == (["a", "b"], expected)


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ([], [], "tokens is empty: fill it in, or remove the row."),
        (None, ["O"], "tokens: expected a list, not nothing."),
        (["a"], None, "tags: expected a list, not nothing."),
        (["a", 3], ["O", "O"], "tokens, entry 2: expected text, not a number."),
        (["a", "b"], ["O", None], "tag 2 is None: expected text or a whole number."),
        (["a", "b"], ["", "O"], "tag 1 is '': expected text or a whole number."),
        (["a"], [float("nan")], "tag 1 is NaN (a missing value): fill it in, or remove the row."),
    ],
)
def test_tags_that_cannot_be_learned(tokens: Any, tags: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_tags({"tokens": tokens, "tags": tags})
    assert str(error.value) == message
