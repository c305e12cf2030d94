import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graft.data.sources.files import read_files
from graft.errors import DataError

ROWS = [
    {"prompt": "when?", "completion": "2024-01-01"},
    {"prompt": 'a, "b"\nc', "completion": "007"},
    {"prompt": "line\u2028separator", "completion": "NA"},
]


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


def test_every_kind_gives_the_same_text(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    with (tmp_path / "c.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    paths = [
        write(tmp_path / "a.json", json.dumps(ROWS, indent=2)),
        write(tmp_path / "b [1].jsonl", "\r\n".join(lines) + "\n\n"),
        str(tmp_path / "c.csv"),
        str(tmp_path / "d.parquet"),
        write(tmp_path / "lines.json", "\n".join(lines)),
        write(tmp_path / "bom.jsonl", "\ufeff\n" + "\n".join(lines)),
        write(tmp_path / "bom.json", "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n")),
        write(tmp_path / "UPPER.JSONL", "\n".join(lines)),
    ]
    content = (tmp_path / "c.csv").read_text(encoding="utf-8")
    for name, end in (("unix.csv", "\n"), ("blank.csv", "\r\n\r\n")):
        paths.append(write(tmp_path / name, content.replace("\r\n", end)))
    for path in paths:
        assert read_files([path]).items == ROWS, path


def test_text_is_one_row(tmp_path: Path) -> None:
    rows = read_files([write(tmp_path / "a.txt", "one\n\ntwo\n")])
    assert rows.items == [{"text": "one\n\ntwo\n"}]


def test_a_column_that_only_later_rows_have_is_there(tmp_path: Path) -> None:
    rows = read_files([write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2, "b": 3}')])
    assert rows.columns == ["a", "b"]
    assert rows.items == [{"a": 1}, {"a": 2, "b": 3}]


def test_nothing_is_read_beyond_the_rows_that_are_wanted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [0, 1]}), tmp_path / "a.parquet")
    paths = [
        str(tmp_path / "a.parquet"),
        write(tmp_path / "b.jsonl", '{"n": 2}\n{"n": 3}\nbroken'),
        write(tmp_path / "c.csv", "n\n4\n"),
    ]
    rows = read_files(paths, 4)
    assert [row["n"] for row in rows.items] == [0, 1, 2, 3]
    assert rows.files == [(Path(path), 2) for path in paths[:2]]
    assert [row["n"] for row in read_files(paths, 1).items] == [0]
    with pytest.raises(DataError, match="line 3: not JSON"):
        read_files(paths, 5)


def test_a_whole_character_in_two_escapes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "🗼"}, ensure_ascii=True))
    assert read_files([path]).items == [{"text": "🗼"}]


def test_columns_of_parquet_that_are_lists_and_objects(tmp_path: Path) -> None:
    items = [{"turns": [{"role": "user", "content": str(n)}], "n": n} for n in range(5000)]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "a.parquet", row_group_size=700)
    assert read_files([str(tmp_path / "a.parquet")]).items == items


def test_objects_of_parquet_have_no_keys_of_others(tmp_path: Path) -> None:
    calls = [{"call": [{"name": "f", "arguments": {"a": 1}}]}]
    calls += [{"call": [{"name": "g", "arguments": {"b": {"c": "2"}}}]}, {"call": None}]
    pq.write_table(pa.Table.from_pylist(calls), tmp_path / "a.parquet")
    assert read_files([str(tmp_path / "a.parquet")]).items == calls


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")  # of what describes the file, at its end
    for broken in (
        content[: len(content) // 2],
        content[: -8 - size] + b"\xff" * size + content[-8:],
        content.replace(b"text", b"te\xfft"),
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError) as error:
            read_files([path])
        message = str(error.value)
        assert message.startswith(f"{path} is not Parquet, or damaged: ")
        assert message.endswith(". Get it again.")
        assert ".." not in message
        assert "\n" not in message


def test_a_cell_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    long = "x" * 200_000
    rows = read_files([write(tmp_path / "a.csv", f"text\n{long}\n")])
    assert rows.items == [{"text": long}]


def test_files_follow_each_other_and_rows_know_their_place(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", '{"n": 0}\n{"n": 1}\n')
    second = write(tmp_path / "b.json", '[{"n": 2}]')
    rows = read_files([first, second])
    assert [row["n"] for row in rows.items] == [0, 1, 2]
    assert rows.where(1) == f"row 2 of {first}"
    assert rows.where(2) == f"row 1 of {second}"
    assert rows.name == f"{first} (and 1 more)"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2: expected an object, not a number"),
        ("a.json", '[{"a": 1}, "b"]', "row 2: expected an object, not text"),
        ("a.json", '{\n "a": 1\n}', "one object a line, or one list of objects"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "line 3: 3 cells, but 2 columns"),
        ("a.csv", 'a,b\n1,"2\n', "not CSV"),
        ("a.csv", 'a,b\n1,"x"y\n', "line 2: not CSV: a quote inside a quoted cell; write it twice"),
        ("a.csv", "a,b\r1,2\r", "line 1: not CSV: its lines end in carriage returns alone"),
        ("a.json", '[{"a": "b"},\n {"a": "\\udc00"}]', "row 2: \\udc00 is half of a character"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{"a": 1}\n[1]', "line 2: expected an object, not a list"),
        ("a.csv", "a,a\n1,2\n", "two columns have the same name"),
        ("a.csv", "a,b\n", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.txt", " \n", "is empty"),
        ("a.parquet", "", "is empty"),
        ("a.parquet", "PAR0", "is not Parquet, or damaged"),
        ("a.docx", "x", "unknown kind '.docx': expected one of json, jsonl, csv, parquet, txt"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid 1", "git lfs pull"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        read_files([path])
    assert message in str(error.value)
    assert path in str(error.value)


def test_other_encodings_are_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\nok\n你好\n".encode("gbk"))
    with pytest.raises(DataError, match=r"line 3: not UTF-8"):
        read_files([str(path)])


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"does not exist\. Did you mean train\.jsonl\?"):
        read_files([str(tmp_path / "trian.jsonl")])
    with pytest.raises(DataError, match="neither does the folder"):
        read_files([str(tmp_path / "no" / "train.jsonl")])
    for name in ("folder.json", "folder"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match="is a folder"):
            read_files([str(tmp_path / name)])


def test_files_of_different_kinds_are_read_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", '{"text": "a"}'), write(tmp_path / "b.csv", "text\nb\n")]
    assert read_files(paths).items == [{"text": "a"}, {"text": "b"}]
