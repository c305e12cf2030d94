import json
from pathlib import Path
from typing import Any

import pytest

from graft.data.config import SourceConfig
from graft.data.formats import read_messages
from graft.data.sources import Source, read_source, resolve_source
from graft.errors import ConfigError, DataError

ROWS = [{"instruction": f"a {n}", "output": f"b {n}"} for n in range(5)]


def write(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ROWS)
    config = SourceConfig(
        path=f"{path}#3", weight=2, format="alpaca", columns={"input": "output"}, max_rows=4
    )
    source = resolve_source(config)
    assert source == Source(f"{path}#3", (path,), "alpaca", {"input": "output"}, {}, 3, 2.0)
    rows = read_source(source)
    assert rows.items == [{"instruction": f"a {n}", "input": f"b {n}"} for n in range(3)]
    assert rows.where(2) == f"row 3 of {path}"
    assert read_source(resolve_source(SourceConfig(path=str(path)))).items == ROWS


def test_a_folder_and_its_splits(tmp_path: Path) -> None:
    for n, name in enumerate(["train-2.json", "train-10.json", "test.json"]):
        write(tmp_path / "data" / name, ROWS[n : n + 1])
    (tmp_path / "README.md").write_text("# About")
    whole = resolve_source(SourceConfig(path=str(tmp_path)))
    assert read_source(whole).items == ROWS[:2]
    assert read_source(whole).where(1) == f"row 1 of {tmp_path / 'data/train-10.json'}"
    test = resolve_source(SourceConfig(path=str(tmp_path), split="test"))
    assert read_source(test).items == ROWS[2:3]
    card = "---\nconfigs:\n- config_name: c\n  data_files: data/test.json\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert resolve_source(SourceConfig(path=str(tmp_path), subset="c")).files == test.files


def test_a_name_in_the_catalogue(tmp_path: Path) -> None:
    path = write(tmp_path / "files" / "a.json", [{"q": "a", "a": "b", "s": "c"}] * 5)
    described = {
        "mine": {
            "file_name": "files/a.json",
            "columns": {"prompt": "q", "response": "a", "system": "s"},
            "num_samples": 4,
        }
    }
    write(tmp_path / "dataset_info.json", described)
    source = resolve_source(SourceConfig(path="mine#2"), str(tmp_path))
    columns = {"instruction": "q", "output": "a", "system": "s"}
    assert source == Source("mine#2", (path,), "alpaca", columns, {}, 2, 1.0)
    assert read_source(source).items == [{"instruction": "a", "output": "b", "system": "c"}] * 2
    # What the run file says goes before what the catalogue says.
    own = SourceConfig(path="mine", format="text", columns={"text": "q"}, weight=3)
    expected = Source("mine", (path,), "text", {"text": "q"}, {}, 4, 3.0)
    assert resolve_source(own, str(tmp_path)) == expected
    # A file may be named too.
    assert resolve_source(SourceConfig(path=str(path)), str(tmp_path)).files == (path,)


def test_a_folder_in_the_catalogue_is_read_whole(tmp_path: Path) -> None:
    for n in (0, 1):
        write(tmp_path / "mine" / f"part{n}.json", ROWS[n : n + 1])
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "mine"}})
    source = resolve_source(SourceConfig(path="mine"), str(tmp_path))
    assert read_source(source).items == ROWS[:2]
    one = resolve_source(SourceConfig(path="mine", split="part1.json"), str(tmp_path))
    assert read_source(one).items == ROWS[1:2]


SAID = [("SYS", "s"), ("USER", "a"), ("CALL", '{"name": "f", "arguments": {}}'), ("OBS", "3")]
READ = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "b", "loss": False},
]


@pytest.mark.parametrize(
    ("formatting", "layout"), [("sharegpt", "sharegpt"), ("openai", "messages")]
)
def test_turns_with_tags_of_their_own(formatting: str, layout: str, tmp_path: Path) -> None:
    turns = [{"who": who, "what": what} for who, what in SAID]
    turns.append({"who": "BOT", "what": "b", "loss": False})
    write(tmp_path / "a.json", [{"talk": turns}])
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "USER", "assistant_tag": "BOT"}
    tags |= {"observation_tag": "OBS", "function_tag": "CALL", "system_tag": "SYS"}
    described = {"file_name": "a.json", "formatting": formatting, "tags": tags}
    described["columns"] = {"messages": "talk"}
    write(tmp_path / "dataset_info.json", {"mine": described})
    source = resolve_source(SourceConfig(path="mine"), str(tmp_path))
    assert source.format == layout
    (row,) = read_source(source).items
    assert read_messages(row, layout) == READ


def test_a_role_that_no_tag_names(tmp_path: Path) -> None:
    said = [{"role": "human", "content": "a"}, {"role": "bot", "content": "b"}, 3]
    write(tmp_path / "a.json", [{"conversations": said[:2]}, {"conversations": said}])
    tags = {"role_tag": "role", "content_tag": "content", "assistant_tag": "assistant"}
    described = {"file_name": "a.json", "formatting": "sharegpt", "tags": tags}
    write(tmp_path / "dataset_info.json", {"mine": described})
    first, second = read_source(resolve_source(SourceConfig(path="mine"), str(tmp_path))).items
    with pytest.raises(DataError, match="turn 2: from 'bot' is not a role"):
        read_messages(first, "sharegpt")
    with pytest.raises(DataError, match="conversations: expected a list of turns, each an object"):
        read_messages(second, "sharegpt")


def fault(tmp_path: Path, path: str, catalogue: bool = False, **entry: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as error:
        resolve_source(SourceConfig(path=path, **entry), str(tmp_path) if catalogue else None)
    return str(error.value)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.json", ROWS)
    write(tmp_path / "dataset_info.json", {"identity": {"file_name": "identity.json"}})
    (tmp_path / "empty").mkdir()
    assert fault(tmp_path, "trian.json") == "trian.json does not exist. Did you mean train.json?"
    assert fault(tmp_path, "no/train.json") == (
        "no/train.json does not exist, and neither does the folder no."
    )
    assert fault(tmp_path, "empty") == (
        "empty holds no data file that can be read (json, jsonl, csv, parquet, txt)."
    )
    assert fault(tmp_path, "tatsu-lab/alpaca") == (
        "tatsu-lab/alpaca does not exist. A data set on a hub is written hf:tatsu-lab/alpaca or "
        "ms:tatsu-lab/alpaca."
    )
    assert fault(tmp_path, "https://huggingface.co/datasets/tatsu-lab/alpaca") == (
        "https://huggingface.co/datasets/tatsu-lab/alpaca is a page; write hf:tatsu-lab/alpaca."
    )
    assert fault(tmp_path, "identity") == (
        "identity does not exist. If it is a name in LLaMA-Factory's dataset_info.json, set "
        "dataset_dir to the folder of that file."
    )
    assert fault(tmp_path, "idenity", catalogue=True) == (
        f"idenity is neither a file nor a name in {tmp_path}/dataset_info.json. Did you mean "
        "identity?"
    )
    for catalogue in (False, True):
        assert fault(tmp_path, "identity,alpaca_en_demo", catalogue) == (
            "identity,alpaca_en_demo does not exist. Several data sets are written as a list: "
            "[identity, alpaca_en_demo]."
        )
    assert fault(tmp_path, "identity", catalogue=True) == (
        f"{tmp_path}/identity.json does not exist. Did you mean train.json?"
    )


def test_subsets_and_splits_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "en" / "train.json", ROWS)
    write(tmp_path / "zh" / "train.json", ROWS)
    here = str(tmp_path)
    assert fault(tmp_path, here) == f"{here} has several subsets; choose one with subset: en, zh."
    assert fault(tmp_path, here, subset="eng") == f"{here} has no subset 'eng'. Did you mean en?"
    assert fault(tmp_path, here, subset="en", split="test") == (
        f"{here} has no split 'test'. Valid: train."
    )
    file = f"{here}/en/train.json"
    assert fault(tmp_path, file, split="train") == f"split: {file} is one file, and has no splits."
    assert fault(tmp_path, file, subset="en") == (
        f"subset: {file} is one file, and has no subsets."
    )
    assert fault(tmp_path, file, revision="v") == (
        f"revision: {file} is no data set on a hub (hf:ORG/NAME, ms:ORG/NAME)."
    )
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "en/train.json"}})
    assert fault(tmp_path, "mine", True, split="test") == (
        f"split: {file} is one file, and has no splits."
    )
    write(tmp_path / "dataset_info.json", {"mine": {"file_name": "en"}})
    assert fault(tmp_path, "mine", True, split="test") == "mine has no split 'test'. Valid: train."
