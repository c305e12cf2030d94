from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec

import pytest

from graft.environment.settings import is_offline, masked, setting_problems, shown_settings


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://me:pass@proxy:3128", "http://me:***@proxy:3128"),
        ("http://me:p@s:s/w@proxy:3128", "http://me:***@proxy:3128"),
        ("me:pass@proxy:3128", "me:***@proxy:3128"),
        ("https://token@mirror/path", "https://***@mirror/path"),
        ("localhost,127.0.0.1", "localhost,127.0.0.1"),
    ],
)
def test_passwords_are_masked(address, shown):
    assert masked(address) == shown


def test_what_is_set_is_shown_and_secrets_are_not():
    environ = {
        "HF_TOKEN": "hf_s3cret",
        "MODELSCOPE_API_TOKEN": "ms-s3cret",
        "HTTPS_PROXY": "http://me:s3cret@proxy:3128",
        "http_proxy": "http://low:1",
        "HTTP_PROXY": "http://up:1",
        "HF_ENDPOINT": "https://me:s3cret@mirror",
        "CUDA_VISIBLE_DEVICES": "",
        "UNRELATED": "s3cret",
    }
    shown = shown_settings(environ)
    assert {name: value for name, value in shown.items() if value is not None} == {
        "HF_ENDPOINT": "https://me:***@mirror",
        "HF_TOKEN": "set",
        "MODELSCOPE_API_TOKEN": "set",
        "http_proxy": "http://low:1",
        "https_proxy": "http://me:***@proxy:3128",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert shown["no_proxy"] is None


def test_an_empty_token_is_none():
    assert shown_settings({"HF_TOKEN": ""})["HF_TOKEN"] is None


@pytest.mark.parametrize(
    ("environ", "cure"),
    [
        ({"HF_ENDPOINT": "hf-mirror.com"}, "export HF_ENDPOINT=https://hf-mirror.com"),
        ({"HF_ENDPOINT": "//hf-mirror.com"}, "export HF_ENDPOINT=https://hf-mirror.com"),
        ({"ALL_PROXY": "socks://h:7890/"}, "export all_proxy=socks5://h:7890/"),
        ({"https_proxy": "ftp://h:1"}, "export https_proxy=http://h:1"),
    ],
)
def test_addresses_that_clients_refuse(environ, cure):
    (problem,) = setting_problems(environ, "hf")
    assert (problem.severity, problem.cure) == ("warning", cure)
    assert setting_problems(dict([cure.removeprefix("export ").split("=")]), "hf") == [
        *_wanting_socks(cure)
    ]


def _wanting_socks(cure: str) -> list:
    if "socks5" not in cure or find_spec("socksio"):
        return []
    return setting_problems({"all_proxy": shlex.split(cure)[1].partition("=")[2]}, "hf")


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_needs_a_package(scheme):
    problems = setting_problems({"all_proxy": f"{scheme}://me:s3cret@h:1"}, "hf")
    cures = [problem.cure for problem in problems]
    assert cures == ([] if find_spec("socksio") else ["pip install socksio PySocks"])
    assert "s3cret" not in str(problems)


def test_modelscope_needs_its_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    (problem,) = setting_problems({}, "ms")
    assert problem.cure == "pip install 'graft-peft[modelscope]'"
    assert setting_problems({}, "hf") == []


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_ENDPOINT": "https://hf-mirror.com/", "http_proxy": "proxy:3128"},
        {"https_proxy": "http://me:pass@proxy:3128", "no_proxy": "socks://x"},
    ],
)
def test_nothing_is_wrong(environ):
    assert setting_problems(environ, "hf") == []


@pytest.mark.parametrize(
    ("environ", "offline"),
    [
        ({}, False),
        ({"HF_HUB_OFFLINE": "0"}, False),
        ({"HF_HUB_OFFLINE": "1"}, True),
        ({"TRANSFORMERS_OFFLINE": "True"}, True),
    ],
)
def test_offline(environ, offline):
    assert is_offline(environ) is offline
