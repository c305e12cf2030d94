from __future__ import annotations

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from graft.config import PeftType
from graft.data.config import DataConfig, SourceConfig
from graft.errors import ConfigError
from graft.methods import METHODS
from graft.training.adapters import settings_model
from graft.training.config import AdapterSettings, TrainConfig
from graft.training.draft import draft
from graft.training.reading import parse_yaml
from graft.training.runfile import dump_run_config, parse_run_config
from graft.training.schema import run_file_schema

from .conftest import needed_fields
from .test_broken_run_files import BROKEN, but

SCHEMA = run_file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)

# What the schema cannot see: these are about two settings, or about where the file stands.
BEYOND = {
    "a key twice",
    "a tab",
    "not YAML",
    "a rank that is none",
    "no number",  # JSON has none
    "no output folder",
    "both warm-ups",
    "both ways to evaluate",
    "a grid",  # graft compare takes it
    "two adapters in one folder",
    "two learning rates",
}


def faults(raw: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(raw)]


def run_with(**adapter: object) -> dict:
    return yaml.safe_load(but()) | {"adapters": {"own": adapter}}


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_a_run_file_of_init_is_accepted(base_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "The cat", "completion": " sees"}\n' * 9)
    assert faults(parse_yaml(draft(str(base_folder), str(rows)).text, "draft")) == []


@pytest.mark.parametrize("kind", METHODS)
def test_every_setting_of_every_method_is_known(kind):
    settings = {"method": kind.lower(), **needed_fields(kind)}
    run = run_with(**settings, learning_rate=1e-3)
    assert faults(run) == []
    dumped = yaml.safe_load(dump_run_config(parse_run_config(run)))
    assert faults(dumped) == []
    known = SCHEMA["$defs"][kind.lower()]["properties"]
    assert set(known) == {*AdapterSettings.model_fields, *settings_model(kind).model_fields}
    for name, described in known.items():
        assert described.get("description"), (kind, name)
        assert faults(run_with(**settings, **{f"{name}x": 1})) != []


def test_defaults_and_types_are_those_of_the_config():
    own = SCHEMA["$defs"]["lora"]["properties"]
    assert own["r"]["type"] == "integer"
    assert own["r"]["default"] == METHODS[PeftType.LORA].config_class.defaults()["r"]
    assert faults(run_with(method="lora", r="8")) != []
    assert faults(run_with(method="lora", target_modules=["q", "v"])) == []
    assert faults(run_with(method="lora", target_modules="all-linear")) == []
    assert faults(run_with(method="lora", target_modules=3)) != []
    assert faults(run_with(method="lora", num_virtual_tokens=3)) != []
    assert faults(run_with(method="lorra")) != []
    assert faults(run_with(method="prompt_tuning")) != []


def test_every_setting_is_explained():
    for part in ("RunConfig", "TrainConfig", "DataConfig", "SourceConfig"):
        properties = (SCHEMA if part == "RunConfig" else SCHEMA["$defs"][part])["properties"]
        assert [name for name, known in properties.items() if not known.get("description")] == []


@pytest.mark.parametrize("case", sorted(BROKEN.keys() - BEYOND))
def test_broken_run_files_are_rejected(case):
    assert faults(parse_yaml(BROKEN[case][0], case)) != []


@pytest.mark.parametrize("section", ["adapters.own", "data", "data.train", "train"])
def test_what_loads_is_accepted(section):
    """Whatever value a setting has: an editor does not complain of what graft takes."""
    models = {"data": DataConfig, "data.train": SourceConfig, "train": TrainConfig}
    names = [*settings_model(PeftType.LORA).model_fields, *AdapterSettings.model_fields]
    names = models[section].model_fields if section in models else names
    taken = 0
    for name in names:
        for value in (None, True, 0, 1, 0.5, "x", "1", ["a"], {"a": 1}, {"a": "b"}):
            run = yaml.safe_load(but(data="data: {train: {path: a}}"))
            place = run
            for part in section.split("."):
                place = place[part]
            place[name] = value
            try:
                parse_run_config(run)
            except ConfigError:
                continue
            taken += 1
            assert faults(run) == [], (name, value)
    assert taken > len(names)


def test_what_is_said_of_an_entry():
    run = yaml.safe_load(but(data="data:\n  train: [{path: a.jsonl, weigth: 2}]"))
    worst = best_match(VALIDATOR.iter_errors(run))
    assert worst is not None
    assert list(worst.absolute_path)[:2] == ["data", "train"]
    with pytest.raises(ConfigError):
        parse_run_config(run)
