"""One seed for every test, no network, and nothing in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hubs import HuggingFaceHub, ModelScopeHub

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the hubs on loopback have none
os.environ["MODELSCOPE_ENDPOINT"] = "http://127.0.0.1:9"  # nobody is there
os.environ["MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS"] = "1"
os.environ["MODELSCOPE_DOWNLOAD_MAX_RETRIES"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GRAFT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _no_earlier_runs(_cache: Path) -> None:
    """Plans count with the runs on their machine: a test's plans not with those of other tests."""
    for runs in _cache.glob("runs-on-*.json"):
        runs.unlink()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model as a folder, with its tokenizer."""
    from tiny import make_tokenizer, tiny_llama  # after the environment is set

    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder as a folder, without a head, with its tokenizer."""
    from tiny import make_tokenizer, tiny_bert

    folder = tmp_path_factory.mktemp("bert")
    tiny_bert().bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose prompts are texts as they stand."""
    return _talker(tmp_path_factory, base_folder)


@pytest.fixture(scope="session")
def chatty(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a chat template."""
    from tiny import CHAT_TEMPLATE

    return _talker(tmp_path_factory, base_folder, CHAT_TEMPLATE)


def _talker(folders: pytest.TempPathFactory, base: Path, chat_template: str | None = None) -> Path:
    from graft import LoraConfig
    from tiny import save_adapter

    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5)
    return save_adapter(folders.mktemp("talker"), base, config, chat_template)


@pytest.fixture(scope="session")
def classifier(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that classifies texts."""
    return _head(tmp_path_factory, bert_folder, "SEQ_CLS", ["moon", "fish", "home"])


@pytest.fixture(scope="session")
def tagger(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that tags words."""
    return _head(tmp_path_factory, bert_folder, "TOKEN_CLS", ["B-who", "I-who", "O"])


@pytest.fixture(scope="session")
def reader(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that finds answers in texts."""
    return _head(tmp_path_factory, bert_folder, "QUESTION_ANS")


def _head(
    folders: pytest.TempPathFactory, base: Path, task: str, labels: list[str] | None = None
) -> Path:
    from graft import LoraConfig
    from tiny import save_adapter

    config = LoraConfig(task_type=task, init_lora_weights=False)
    return save_adapter(folders.mktemp(task), base, config, labels=labels)


@pytest.fixture
def hugging_face(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HuggingFaceHub]:
    """A hub on loopback that the real client is led to, with an empty cache."""
    from huggingface_hub import close_session, constants

    hub = HuggingFaceHub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + template,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)  # read from the environment at import
    yield hub
    close_session()
    hub.close()


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelScopeHub]:
    """As `hugging_face`."""
    hub = ModelScopeHub()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    yield hub
    hub.close()
