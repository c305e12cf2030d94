"""The demo trains every method, with settings that the method takes."""

import pytest

from graft.demo.settings import SETTINGS, choose
from graft.errors import ConfigError
from graft.methods import make_config, method_names


def test_every_method_has_settings():
    assert sorted(SETTINGS) == sorted(method_names())


@pytest.mark.parametrize("method", SETTINGS)
def test_the_method_takes_its_settings(method):
    fields = SETTINGS[method].fields
    config = make_config(method, **fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_methods_are_chosen_by_name():
    assert list(choose(["ia3", " LoRA "]).items()) == [(m, SETTINGS[m]) for m in ("ia3", "lora")]
    assert list(choose(["prompt-tuning"])) == ["prompt_tuning"]


@pytest.mark.parametrize(("given", "named"), [("lroa", "lora"), ("", "prompt_tuning")])
def test_a_method_that_does_not_exist(given, named):
    with pytest.raises(ConfigError, match=named):
        choose(["ia3", given])
