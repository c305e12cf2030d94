"""Data sets on both hubs, through the real clients and servers on loopback."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graft.data.config import SourceConfig
from graft.data.sources import read_source, resolve_source
from graft.errors import ConfigError, DataError
from hubs import LoopbackHub

CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: en/test.jsonl
- config_name: zh
  data_files: zh.csv
---
"""


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


FILES = {
    "README.md": CARD,
    "en/train-00001-of-00002.parquet": parquet("c"),
    "en/train-00000-of-00002.parquet": parquet("a", "b"),
    "en/test.jsonl": b'{"text": "d"}\n',
    "zh.csv": "text\n你好\n".encode(),
    "loader.py": b"print('this runs')",
}


@pytest.fixture(params=["hf", "ms"])
def hub(request: pytest.FixtureRequest) -> tuple[str, LoopbackHub]:
    names = {"hf": "hugging_face", "ms": "modelscope"}
    return request.param, request.getfixturevalue(names[request.param])


def texts(path: str, dataset_dir: Path | None = None, **entry: Any) -> list[str]:
    source = resolve_source(
        SourceConfig(path=path, **entry), None if dataset_dir is None else str(dataset_dir)
    )
    return [row["text"] for row in read_source(source).items]


def test_a_subset_and_a_split_and_nothing_else(hub: tuple[str, LoopbackHub]) -> None:
    prefix, server = hub
    server.add("org/name", FILES, kind="dataset")
    assert texts(f"{prefix}:org/name:en") == ["a", "b", "c"]
    train = {"README.md", *(path for path in FILES if "train" in path)}
    assert {path for path, count in server.served.items() if count} == train
    assert texts(f"{prefix}::org/name:en#2") == ["a", "b"]
    assert texts(f"{prefix}:org/name", subset="en", split="test") == ["d"]
    assert texts(f"{prefix}:org/name", subset="zh", max_rows=5) == ["你好"]


def test_what_is_here_is_enough_when_the_hub_is_gone(hub: tuple[str, LoopbackHub]) -> None:
    prefix, server = hub
    server.add("org/name", FILES, kind="dataset")
    assert texts(f"{prefix}:org/name:zh") == ["你好"]
    server.add("org/plain", {"train.jsonl": b'{"text": "a"}'}, kind="dataset")
    assert texts(f"{prefix}:org/plain") == ["a"]
    server.faults.status = 503
    assert texts(f"{prefix}:org/name:zh") == ["你好"]
    assert texts(f"{prefix}:org/plain") == ["a"]
    # What was not fetched is not there, rather than something else in its place.
    with pytest.raises(ConfigError, match="out of order: it answers 503"):
        texts(f"{prefix}:org/name:en")


def test_what_is_asked_for_is_not_there(hub: tuple[str, LoopbackHub]) -> None:
    prefix, server = hub
    server.add("org/name", FILES, kind="dataset")
    name = f"{prefix}:org/name"
    for path, entry, message in [
        (name, {}, f"{name} has several subsets; choose one with subset: en, zh."),
        (f"{name}:eng", {}, f"{name} has no subset 'eng'. Did you mean en?"),
        (f"{name}:en", {"split": "tst"}, f"{name} has no split 'tst'. Did you mean test?"),
        (f"{name}:zh", {"split": "test"}, f"{name} has no split 'test'. Valid: train."),
    ]:
        with pytest.raises(DataError) as error:
            texts(path, **entry)
        assert str(error.value) == message


def test_a_revision(hub: tuple[str, LoopbackHub]) -> None:
    prefix, server = hub
    server.add("org/name", {"a.jsonl": b'{"text": "a"}'}, kind="dataset", revisions=["v1"])
    assert texts(f"{prefix}:org/name@v1") == ["a"]
    assert texts(f"{prefix}:org/name", revision="v1") == ["a"]


def test_a_name_of_the_catalogue_that_lies_on_a_hub(
    hub: tuple[str, LoopbackHub], tmp_path: Path
) -> None:
    prefix, server = hub
    files = {"x/train.json": b'[{"q": "a"}]', "x/test.json": b'[{"q": "b"}]', "train.json": b"[3]"}
    server.add("org/name", files, kind="dataset")
    described = {f"{prefix}_hub_url": "org/name", "folder": "x", "columns": {"prompt": "q"}}
    entries = {"learn": described, "test": {**described, "split": "test"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    assert texts("learn", tmp_path) == ["a"]
    assert texts("test", tmp_path) == ["b"]
    assert texts("test", tmp_path, split="train") == ["a"]
