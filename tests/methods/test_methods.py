"""The registry, and the fields by which targets are said."""

from __future__ import annotations

import pytest

from graft.config import PeftType
from graft.errors import ConfigError
from graft.methods import METHODS, LoraConfig, make_config, method_names
from graft.methods.base import LayerAdapter, VirtualTokens


def test_every_type_has_a_method():
    assert set(METHODS) == set(PeftType)
    for kind, method in METHODS.items():
        assert issubclass(method, LayerAdapter | VirtualTokens)
        assert method.config_class.peft_type is kind
        assert 0 < method.learning_rate < 1


def test_methods_are_made_by_name():
    assert "prefix_tuning" in method_names()
    for name in method_names():
        needed = {"num_virtual_tokens": 2} if "tuning" in name else {}
        assert make_config(name, **needed).peft_type.value.lower() == name
    config = make_config("LoRA", r=3)
    assert isinstance(config, LoraConfig)
    assert config.r == 3
    assert make_config("prompt-tuning", num_virtual_tokens=2).num_virtual_tokens == 2


def test_what_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no method 'lorra'\. Did you mean lora"):
        make_config("lorra")
    with pytest.raises(ConfigError, match=r"lora has no setting 'rank'\."):
        make_config("lora", rank=3)
    with pytest.raises(ConfigError, match=r"no setting 'target_module'\. Did you mean target_mod"):
        make_config("ia3", target_module=["k_proj"])
