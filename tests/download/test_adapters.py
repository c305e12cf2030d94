from __future__ import annotations

import sys

import huggingface_hub
import pytest

from graft.config import PeftConfig
from graft.download import adapter_folder
from graft.errors import CheckpointError, ConfigError
from graft.methods import LoraConfig


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub cannot be reached, and nothing was downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_folder_stands_for_itself(tmp_path):
    LoraConfig(r=3).save_pretrained(tmp_path / "inner")
    assert adapter_folder(tmp_path / "inner") == tmp_path / "inner"
    assert adapter_folder(tmp_path, subfolder="inner") == tmp_path / "inner"
    config = PeftConfig.from_pretrained(tmp_path, subfolder="inner")
    assert isinstance(config, LoraConfig)
    assert config.r == 3


def test_a_folder_of_adapters_says_which(tmp_path):
    for name in ("b", "a"):
        LoraConfig().save_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match="There are adapters in it: a, b"):
        adapter_folder(tmp_path)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(source):
    with pytest.raises(CheckpointError, match=f"no adapter folder {source}"):
        adapter_folder(source)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["org/name", "hf:org/name"])
def test_a_hub_that_cannot_be_reached(source):
    with pytest.raises(
        ConfigError, match=r"not in the cache .*cache, and HF_HUB_OFFLINE is set: unset"
    ):
        adapter_folder(source)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        PeftConfig.from_pretrained(source)


def test_an_id_that_is_none():
    with pytest.raises(ConfigError, match="neither a folder here nor an id"):
        adapter_folder("bad name!/x")


def test_modelscope_s_client_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(ConfigError, match=r"graft-peft\[modelscope\]"):
        adapter_folder("ms:org/name")
