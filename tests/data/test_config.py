import pytest
from pydantic import ValidationError

from graft.data.config import DataConfig


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="cutoff_len"):
        DataConfig.model_validate({"train": "a.jsonl", "cutoff_len": 1})


@pytest.mark.parametrize(
    "bad",
    [
        {"eval_fraction": 1.0},
        {"eval_fraction": -0.1},
        {"max_length": 1},
        {"max_rows": 0},
        {"format": "alpacca"},
        {"train": []},
        {"eval": "b.jsonl", "eval_fraction": 0.1},
    ],
)
def test_values_that_cannot_work_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"train": "a.jsonl", **bad})


def test_every_field_is_described() -> None:
    for name, field in DataConfig.model_fields.items():
        assert field.description, name
