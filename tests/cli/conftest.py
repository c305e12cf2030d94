"""Adapters on disk for the commands that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from graft import LoraConfig
from graft.cli import main
from tiny import CHAT_TEMPLATE, save_adapter


@pytest.fixture
def graft() -> Callable[..., int]:
    """The command line in this process; returns its exit code."""

    def run(*words: str | Path) -> int:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert isinstance(end.value.code, int)
        return end.value.code

    return run


@pytest.fixture(scope="session")
def lora(base_folder, tmp_path_factory) -> Path:
    """An adapter with a chat template."""
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    return save_adapter(tmp_path_factory.mktemp("lora"), base_folder, config, CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def plain(base_folder, tmp_path_factory) -> Path:
    """An adapter that was trained on texts as they stand."""
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    return save_adapter(tmp_path_factory.mktemp("plain"), base_folder, config)
