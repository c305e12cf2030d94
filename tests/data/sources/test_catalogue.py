import json
from pathlib import Path
from typing import Any

import pytest

from graft.data.sources.catalogue import Entry, names_in, read_entry
from graft.errors import DataError


def entry(folder: Path, described: Any) -> Entry | None:
    (folder / "dataset_info.json").write_text(json.dumps({"mine": described}))
    return read_entry(str(folder), "mine")


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"hf_hub_url": "o/n"}, Entry("hf", "o/n", "alpaca")),
        ({"ms_hub_url": "o/n"}, Entry("ms", "o/n", "alpaca")),
        ({"hf_hub_url": "o/n", "ms_hub_url": "o/m"}, Entry("hf", "o/n", "alpaca")),
        ({"hf_hub_url": "o/n", "script_url": "s", "ranking": False}, Entry("hf", "o/n", "alpaca")),
        (
            {"hf_hub_url": "o/n", "subset": "s", "split": "x", "folder": "f", "num_samples": 5},
            Entry("hf", "o/n", "alpaca", subset="s", split="x", folder="f", max_rows=5),
        ),
        (
            {
                "hf_hub_url": "o/n",
                "columns": {"prompt": "q", "query": "i", "response": "a", "history": "h"},
            },
            Entry(
                "hf",
                "o/n",
                "alpaca",
                {"instruction": "q", "input": "i", "output": "a", "history": "h"},
            ),
        ),
        (
            {"hf_hub_url": "o/n", "columns": {"prompt": "q", "response": "a", "system": "s"}},
            Entry("hf", "o/n", "alpaca", {"instruction": "q", "output": "a", "system": "s"}),
        ),
        (
            {"hf_hub_url": "o/n", "columns": {"prompt": "content"}},
            Entry("hf", "o/n", "text", {"text": "content"}),
        ),
        (
            {
                "ms_hub_url": "o/n",
                "formatting": "sharegpt",
                "columns": {"messages": "m", "tools": "t", "system": "s"},
                "tags": {"role_tag": "role", "user_tag": "USER"},
            },
            Entry(
                "ms",
                "o/n",
                "sharegpt",
                {"conversations": "m", "tools": "t", "system": "s"},
                {"role_tag": "role", "user_tag": "USER"},
            ),
        ),
        (
            {"ms_hub_url": "o/n", "formatting": "openai", "columns": {"messages": "m"}},
            Entry("ms", "o/n", "messages", {"messages": "m"}),
        ),
    ],
)
def test_entries(described: dict, expected: Entry, tmp_path: Path) -> None:
    assert entry(tmp_path, described) == expected


def test_a_file_lies_beside_the_catalogue(tmp_path: Path) -> None:
    found = entry(tmp_path, {"file_name": "a.json"})
    assert found == Entry(None, str(tmp_path / "a.json"), "alpaca")
    assert read_entry(str(tmp_path), "other") is None
    assert names_in(str(tmp_path)) == ["mine"]


def test_modelscope_where_the_user_prefers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    both = {"hf_hub_url": "o/n", "ms_hub_url": "o/m"}
    assert entry(tmp_path, both) == Entry("ms", "o/m", "alpaca")
    assert entry(tmp_path, {"hf_hub_url": "o/n"}) == Entry("hf", "o/n", "alpaca")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"file_name": "a.json", "ranking": True}, "ranking cannot be used: preference data are"),
        (
            {"script_url": "s"},
            "script_url cannot be used: loading scripts run code of others here.",
        ),
        ({"cloud_file_name": "s3://a"}, "cloud_file_name cannot be used: files in cloud storage a"),
        (
            {"file_name": "a.json", "columns": {"images": "images"}},
            "images cannot be used: pictures are not learned here.",
        ),
        (
            {"file_name": "a.json", "columns": {"kto_tag": "label"}},
            "kto_tag cannot be used: preference data are not learned here.",
        ),
        ({"filename": "a.json"}, "'filename' is not a key of it. Did you mean file_name?"),
        ({"om_hub_url": "o/n"}, "it has none of hf_hub_url, ms_hub_url, file_name, so nothing"),
        ({}, "it has none of hf_hub_url, ms_hub_url, file_name, so nothing can be read."),
        ("a.json", "expected an object with file_name, hf_hub_url or ms_hub_url."),
        (
            {"file_name": "a.json", "formatting": "sharegtp"},
            "formatting 'sharegtp' is not known. Did you mean sharegpt?",
        ),
        (
            {"file_name": "a.json", "columns": {"promt": "q"}},
            "columns: 'promt' is not known. Did you mean prompt?",
        ),
        (
            {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user": "u"}},
            "tags: 'user' is not known. Did you mean user_tag?",
        ),
        ({"file_name": ["a.json"]}, "file_name is ['a.json']: expected text."),
        ({"file_name": "a.json", "formatting": []}, "formatting is []: expected text."),
        ({"hf_hub_url": "o/n", "split": 3}, "split is 3: expected text."),
        (
            {"file_name": "a.json", "columns": {"prompt": ["q"]}},
            "columns: prompt is ['q']: expected text.",
        ),
        ({"file_name": "a.json", "columns": ["q"]}, "columns: expected an object."),
        (
            {"file_name": "a.json", "num_samples": "5"},
            "num_samples is '5': expected how many rows to take.",
        ),
    ],
)
def test_entries_that_cannot_be_followed(described: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        entry(tmp_path, described)
    assert str(error.value).startswith(f"{tmp_path / 'dataset_info.json'}, mine: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "dataset_dir: {folder} holds no dataset_info.json."),
        (b"{\n'a': 1}", "{path}, line 2: not JSON: Expecting property name enclosed in double"),
        (b"[]", "{path}: expected an object: names of data sets, and what each is."),
        (b"\xff\xfe", "{path} is not UTF-8 text; save the file as UTF-8."),
    ],
)
def test_a_broken_catalogue(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_entry(str(tmp_path), "mine")
    assert str(error.value).startswith(message.format(path=path, folder=tmp_path))
