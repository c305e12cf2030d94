from pathlib import Path

import pytest

from graft.data.config import SourceConfig
from graft.data.sources.address import Address
from graft.errors import DataError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hf:org/name", Address("hf", "org/name")),
        ("ms:org/name", Address("ms", "org/name")),
        ("hf:squad", Address("hf", "squad")),
        ("hf:org/name:sub", Address("hf", "org/name", subset="sub")),
        ("hf:org/name@v1", Address("hf", "org/name", revision="v1")),
        ("hf:org/name#5", Address("hf", "org/name", max_rows=5)),
        ("hf:o/n:s@v#5", Address("hf", "o/n", subset="s", revision="v", max_rows=5)),
        ("hf:o/n@v:s#5", Address("hf", "o/n", subset="s", revision="v", max_rows=5)),
        ("hf:o/n@refs/convert/parquet", Address("hf", "o/n", revision="refs/convert/parquet")),
        ("hf::org/name:sub#500", Address("hf", "org/name", subset="sub", max_rows=500)),
        ("ms::org/name#500", Address("ms", "org/name", max_rows=500)),
        ("data/a.jsonl", Address(None, "data/a.jsonl")),
        ("data/a.jsonl#7", Address(None, "data/a.jsonl", max_rows=7)),
        ("C#/a.jsonl", Address(None, "C#/a.jsonl")),
        ("name", Address(None, "name")),
    ],
)
def test_paths(path: str, expected: Address) -> None:
    assert Address.of(SourceConfig(path=path)) == expected


def test_what_is_said_beside_the_path() -> None:
    config = SourceConfig(path="hf:o/n#9", subset="s", split="x", revision="v", max_rows=3)
    assert Address.of(config) == Address("hf", "o/n", "s", "x", "v", 3)
    config = SourceConfig(path="hf:o/n:s#3", subset="s", max_rows=9)
    assert Address.of(config) == Address("hf", "o/n", "s", max_rows=3)


def test_a_file_whose_name_ends_like_a_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "take#3"
    path.mkdir()
    assert Address.of(SourceConfig(path=str(path))) == Address(None, str(path))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"path": "hf:a/b/c"},
            "hf:a/b/c is no data set on a hub: expected hf:ORG/NAME or ms:ORG/NAME, then perhaps "
            ":SUBSET, @REVISION and #ROWS, each once.",
        ),
        (
            {"path": "hf:a/b:c:d"},
            "hf:a/b:c:d is no data set on a hub: expected hf:ORG/NAME or ms:ORG/NAME, then perhaps "
            ":SUBSET, @REVISION and #ROWS, each once.",
        ),
        ({"path": "hf:a/b#x"}, "hf:a/b#x: after # comes how many rows to take, not 'x'."),
        ({"path": "hf:a/b#0"}, "hf:a/b#0: after # comes how many rows to take, not '0'."),
        (
            {"path": "hf:a/b:c", "subset": "d"},
            "hf:a/b:c names the subset 'c', and subset: 'd' is given beside it: keep one.",
        ),
    ],
)
def test_paths_that_mean_nothing(entry: dict, message: str) -> None:
    with pytest.raises(DataError) as error:
        Address.of(SourceConfig(**entry))
    assert str(error.value) == message
