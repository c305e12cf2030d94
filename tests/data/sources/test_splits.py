import pytest

from graft.data.sources.splits import data_files, select_files
from graft.errors import DataError


def select(
    paths: str, readme: str = "", subset: str | None = None, split: str | None = None
) -> list[str]:
    return select_files(paths.split(), readme, "hf:a/b", subset, split)


def fault(*given: str | None) -> str:
    with pytest.raises(DataError) as error:
        select(*given)  # type: ignore[arg-type]
    return str(error.value)


@pytest.mark.parametrize(
    ("paths", "split", "expected"),
    [
        ("a.jsonl", None, "a.jsonl"),
        ("README.md a.jsonl dataset_infos.json LICENSE.txt .cache/b.json", None, "a.jsonl"),
        ("test.csv train.csv", None, "train.csv"),
        ("test.csv train.csv", "test", "test.csv"),
        ("data/train-2.jsonl data/train-10.jsonl", None, "data/train-2.jsonl data/train-10.jsonl"),
        ("train/b.json train/a.json test/a.json", None, "train/a.json train/b.json"),
        ("my_dev_set.json my_train_set.json", "validation", "my_dev_set.json"),
        ("gsm8k_train.json gsm8k_test.json", None, "gsm8k_train.json"),
        ("train.json dev.json extra.json", None, "train.json"),
        ("train.json dev.json extra.json", "extra", "extra.json"),
        ("训练.json", None, "训练.json"),
        ("val.json train.json", "validation", "val.json"),
        ("eval.json train.json", "test", "eval.json"),
        ("part-00000-of-00002.parquet part-00001-of-00002.parquet", None, None),
        ("data_en.json data_zh.json", "data_zh", "data_zh.json"),
        ("data_en.json data_zh.json", "data_zh.json", "data_zh.json"),
        ("train.json train.csv", "train.csv", "train.csv"),
        ("constraints.json", None, "constraints.json"),  # no word of its own in it is `train`
        ("default/train/0000.parquet default/train/0001.parquet", None, None),
    ],
)
def test_splits_by_name(paths: str, split: str | None, expected: str | None) -> None:
    assert select(paths, split=split) == (expected or paths).split()


def test_subsets_by_folder() -> None:
    paths = "en/train.json en/test.json zh/data/train.json"
    assert select(paths, subset="en") == ["en/train.json"]
    assert select(paths, subset="zh") == ["zh/data/train.json"]
    assert fault(paths) == "hf:a/b has several subsets; choose one with subset: en, zh."
    assert fault(paths, "", "eng") == "hf:a/b has no subset 'eng'. Did you mean en?"
    assert select(f"{paths} train.json") == ["train.json"]  # what lies at the top is the default


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: ["x.csv", "data/**/y.csv"]
- config_name: other
  data_dir: more
- config_name: one
  data_files: z.csv
- config_name: several
  data_files: [z.csv, "*.csv"]
- config_name: gone
  data_files: gone.csv
---
# About
"""
FILES = "data/train-1.csv data/train-0.csv data/train-2/a.csv x.csv data/p/q/y.csv data/y.csv"
FILES += " more/train.csv more/dev.csv z.csv"


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        (None, None, "data/train-0.csv data/train-1.csv"),
        ("main", "test", "x.csv data/p/q/y.csv data/y.csv"),
        ("other", None, "more/train.csv"),
        ("other", "validation", "more/dev.csv"),
        ("one", None, "z.csv"),
        ("several", "train", "z.csv x.csv"),
    ],
)
def test_subsets_and_splits_that_the_card_declares(
    subset: str | None, split: str | None, expected: str
) -> None:
    assert select(FILES, CARD, subset, split) == expected.split()


def test_what_the_card_does_not_declare() -> None:
    assert fault(FILES, CARD, "oter") == "hf:a/b has no subset 'oter'. Did you mean other?"
    assert fault(FILES, CARD, "gone") == "hf:a/b has no subset 'gone'. Did you mean one?"
    assert fault(FILES, CARD, None, "validation") == (
        "hf:a/b has no split 'validation'. Valid: test, train."
    )


def test_the_path_of_a_card_leads_nowhere_else() -> None:
    card = "---\nconfigs:\n- config_name: a\n  data_files: ../../secret.csv\n---\n"
    assert select("train.csv", card) == ["train.csv"]


@pytest.mark.parametrize(
    "card",
    ["# About", "---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\n- 1\n---\n", "---\nx: 1"],
)
def test_a_card_that_declares_nothing(card: str) -> None:
    assert select("train.csv test.csv", card) == ["train.csv"]


def test_what_is_unclear_is_asked() -> None:
    assert fault("b.json a.json") == "hf:a/b has several splits; choose one with split: a, b."
    assert fault("test.json dev.json") == (
        "hf:a/b has several splits; choose one with split: validation, test."
    )
    # One would train on what is meant for a test, without having said so.
    assert fault("test.json") == "hf:a/b has no split 'train'; choose one with split: test."
    assert fault("train.json", "", None, "tset") == "hf:a/b has no split 'tset'. Valid: train."
    assert fault("train.json train.csv") == (
        "hf:a/b holds these rows in files of several kinds (train.csv, train.json): choose one "
        "of them, such as split: train.csv."
    )


def test_unlike_files_in_one_folder_are_neither_joined_nor_passed_over() -> None:
    assert fault("gsm8k_train.json alpaca.json") == (
        "hf:a/b has several splits; choose one with split: alpaca, gsm8k_train."
    )
    assert fault("a_train.json b_train.json") == (
        "hf:a/b has several splits; choose one with split: a_train, b_train."
    )
    assert select("a_train.json b_train.json", split="b_train") == ["b_train.json"]
    # In a folder that is called so, whatever the files are called.
    assert select("train/a.json train/b.json test/a.json") == ["train/a.json", "train/b.json"]


def test_shards_that_lack() -> None:
    there = "train-00000-of-00003.parquet train-00002-of-00003.parquet"
    assert fault(there) == (
        "hf:a/b is not whole here: it has 2 of 3 files, the first is "
        "train-00000-of-00003.parquet. Get it again."
    )


def test_nothing_to_read() -> None:
    assert fault("README.md a.jsonl.gz b.zip") == (
        "hf:a/b holds no data file that can be read (json, jsonl, csv, parquet, txt); its files "
        "are of the kinds .gz, .md, .zip."
    )
    assert fault("b.py dataset_infos.json") == (
        "hf:a/b holds no data file that can be read (json, jsonl, csv, parquet, txt), but a "
        "loading script, which is not run; Hugging Face may have its rows as Parquet: "
        "hf:a/b@refs/convert/parquet."
    )
    assert data_files(["README.md"]) == []
