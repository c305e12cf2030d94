import json
from pathlib import Path

import pytest

from graft.data.formats import read_question
from graft.data.sources.files import read_files
from graft.errors import DataError

ARTICLES = {
    "version": "2.0",
    "data": [
        {
            "title": "Cities",
            "paragraphs": [
                {
                    "context": "Paris is a city.",
                    "qas": [
                        {
                            "id": "a",
                            "question": "What is Paris?",
                            "answers": [{"text": "a city", "answer_start": 9}],
                            "is_impossible": False,
                        },
                        {"id": "b", "question": "And Rome?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Rome too.", "qas": []},
            ],
        },
        {
            "paragraphs": [
                {
                    "context": "It rains.",
                    "qas": [
                        {
                            "id": "c",
                            "question": "What does it do?",
                            "answers": [{"text": "rains", "answer_start": 3}],
                        }
                    ],
                }
            ]
        },
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_a_question(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ARTICLES, indent=indent))
    rows = read_files([path])
    expected = [
        {"context": paragraph["context"], **question}
        for article in ARTICLES["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    for row in expected[:2]:
        row["title"] = "Cities"
    assert rows.items == expected
    read = [read_question(row) for row in rows.items]
    assert [(q.id, q.answers, q.starts) for q in read] == [
        ("a", ("a city",), (9,)),
        ("b", (), ()),
        ("c", ("rains",), (3,)),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [{"paragraphs": 3}],
            "article 1: expected paragraphs, a list of objects (SQuAD's layout).",
        ),
        ([{"paragraphs": []}, {"x": 1}], "article 2: expected paragraphs, a list of objects"),
        ([{"paragraphs": [{"qas": [3]}]}], "article 1: expected qas, a list of objects"),
    ],
)
def test_what_is_laid_out_otherwise(data: list, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": data}))
    with pytest.raises(DataError) as error:
        read_files([path])
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_other_objects_with_data_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"data": [{"x": 1}]}, {"data": "y"}, {"data": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_files([path]).items == rows
