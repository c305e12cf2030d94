import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graft.data.sources.files import read_files


def test_labels_and_tags_have_the_names_that_datasets_wrote(tmp_path: Path) -> None:
    names = ["O", "B-x", "I-x"]
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": label,
            "tags": datasets.List(datasets.ClassLabel(names=names)),
            "number": datasets.Value("int64"),
        }
    )
    columns = {
        "text": ["a", "b", "c"],
        "label": [1, 0, -1],
        "tags": [[0, 1, 2], [], [2]],
        "number": [0, 1, 2],
    }
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    rows = read_files([path]).items
    assert [row["label"] for row in rows] == [label.int2str(1), label.int2str(0), None]
    assert [row["tags"] for row in rows] == [names, [], ["I-x"]]
    assert [row["number"] for row in rows] == [0, 1, 2]


def test_lists_as_they_once_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kind = {"names": ["O", "B"], "_type": "ClassLabel"}
    for feature in ([kind], {"feature": kind, "_type": "Sequence"}):
        described = json.dumps({"info": {"features": {"tags": feature}}})
        table = pa.table({"tags": [[1, 0]]}).replace_schema_metadata({"huggingface": described})
        pq.write_table(table, path)
        assert read_files([path]).items == [{"tags": ["B", "O"]}]


@pytest.mark.parametrize("described", ["{", "{}", '{"info": {"features": 3}}', '{"info": []}', "3"])
def test_metadata_of_another_kind(described: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"label": [1]}).replace_schema_metadata({"huggingface": described})
    pq.write_table(table, path)
    assert read_files([path]).items == [{"label": 1}]
