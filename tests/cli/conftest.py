"""Adapters on disk for the commands that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from graft import LoraConfig
from graft.cli import main
from tiny import CHAT_TEMPLATE, make_tokenizer, save_adapter, tiny_bert


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


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert().bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier(bert_folder, tmp_path_factory) -> Path:
    config = LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)
    labels = ["moon", "fish", "home"]
    return save_adapter(tmp_path_factory.mktemp("classes"), bert_folder, config, labels=labels)


@pytest.fixture(scope="session")
def tagger(bert_folder, tmp_path_factory) -> Path:
    config = LoraConfig(task_type="TOKEN_CLS", init_lora_weights=False)
    labels = ["B-who", "I-who", "O"]
    return save_adapter(tmp_path_factory.mktemp("tags"), bert_folder, config, labels=labels)


@pytest.fixture(scope="session")
def reader(bert_folder, tmp_path_factory) -> Path:
    """An adapter that finds answers in texts."""
    config = LoraConfig(task_type="QUESTION_ANS", init_lora_weights=False)
    return save_adapter(tmp_path_factory.mktemp("reader"), bert_folder, config)
