"""The demo trains every method, with settings that the method takes."""

import pytest

from graft.demo.settings import SETTINGS
from graft.methods import make_config, method_names


def test_every_method_has_settings():
    assert sorted(SETTINGS) == sorted(method_names())


@pytest.mark.parametrize("method", SETTINGS)
def test_the_method_takes_its_settings(method):
    fields = SETTINGS[method].fields
    config = make_config(method, **fields)
    assert {name: getattr(config, name) for name in fields} == fields
