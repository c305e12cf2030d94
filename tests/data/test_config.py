from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from graft.data.config import DataConfig, SourceConfig


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="cutoff_len"):
        DataConfig.model_validate({"train": "a.jsonl", "cutoff_len": 1})


@pytest.mark.parametrize(
    ("train", "where", "said"),
    [
        ({"path": "a", "weigth": 2}, ("train", "mapping", "weigth"), "Extra inputs"),
        (["a", {"path": "b", "weight": 0}], ("train", "list", 1, "mapping", "weight"), "greater"),
        ([{"weight": 1}], ("train", "list", 0, "mapping", "path"), "Field required"),
        (3, ("train", "path"), "valid string"),
    ],
)
def test_a_mistake_in_an_entry_is_said_once(train: object, where: tuple, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        DataConfig.model_validate({"train": train})
    (fault,) = error.value.errors()
    assert fault["loc"] == where
    assert said in fault["msg"]
    with pytest.raises(ValidationError) as error:
        DataConfig.model_validate({"train": "a", "eval": train})
    (fault,) = error.value.errors()
    assert fault["loc"] == ("eval", *where[1:])


@pytest.mark.parametrize(
    "bad",
    [
        {"eval_fraction": 1.0},
        {"eval_fraction": -0.1},
        {"max_length": 1},
        {"max_rows": 0},
        {"format": "alpacca"},
        {"train": []},
        {"train": ""},
        {"eval": []},
        {"eval": "b.jsonl", "eval_fraction": 0.1},
        {"train": {"path": "a.jsonl", "weight": -1}},
        {"train": {"path": "a.jsonl", "weight": float("inf")}},
        {"train": {"path": "a.jsonl", "max_rows": 0}},
    ],
)
def test_values_that_cannot_work_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"train": "a.jsonl", **bad})


def test_entries_take_from_the_section_what_they_do_not_say() -> None:
    full = {"path": "c", "format": "text", "columns": {}, "max_rows": 9, "weight": 2.0}
    config = DataConfig.model_validate(
        {
            "train": ["a", {"path": "b", "weight": 0.5}, full],
            "eval": "d",
            "format": "alpaca",
            "columns": {"output": "o"},
            "max_rows": 3,
        }
    )
    section = {"format": "alpaca", "columns": {"output": "o"}, "max_rows": 3}
    assert config.train_sources == (
        SourceConfig.model_validate({"path": "a", **section}),
        SourceConfig.model_validate({"path": "b", "weight": 0.5, **section}),
        SourceConfig.model_validate(full),
    )
    assert config.eval_sources == (SourceConfig.model_validate({"path": "d", **section}),)
    assert DataConfig(train="a").eval_sources == ()
    assert DataConfig(train=SourceConfig(path="a", split="x")).train_sources[0].split == "x"


def test_what_is_written_out_is_read_again() -> None:
    config = DataConfig.model_validate({"train": ["a", {"path": "b", "split": "x"}], "eval": "c"})
    written = config.model_dump(mode="json")
    assert written["train"] == ["a", {"path": "b", "weight": 1.0, "split": "x"}]
    assert DataConfig.model_validate(written) == config


def test_a_home_folder_is_meant_but_not_on_a_hub() -> None:
    config = DataConfig.model_validate(
        {"train": ["~/a.jsonl", {"path": "~/b.jsonl"}, "hf:~/c"], "eval": "~/d", "dataset_dir": "~"}
    )
    home = str(Path.home())
    assert [s.path for s in config.train_sources] == [
        f"{home}/a.jsonl",
        f"{home}/b.jsonl",
        "hf:~/c",
    ]
    assert (config.eval, config.dataset_dir) == (f"{home}/d", home)


def test_the_learned_split_of_a_hub_is_not_evaluated() -> None:
    with pytest.raises(ValidationError) as error:
        DataConfig(train=["a", "hf:a/b"], eval="hf:a/b")
    assert (
        "eval names the rows of hf:a/b that train learns: give another split, such as "
        "{path: 'hf:a/b', split: validation}, or eval_fraction"
    ) in str(error.value)
    DataConfig(train="hf:a/b", eval=SourceConfig(path="hf:a/b", split="test"))


def test_rows_to_evaluate_have_no_weight() -> None:
    with pytest.raises(ValidationError, match="weight is for train only"):
        DataConfig(train="a", eval=SourceConfig(path="b", weight=2))


@pytest.mark.parametrize("config", [DataConfig, SourceConfig])
def test_every_field_is_described(config: type[BaseModel]) -> None:
    for name, field in config.model_fields.items():
        assert field.description, name
