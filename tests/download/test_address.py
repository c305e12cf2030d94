from __future__ import annotations

import pytest

from graft.download import HubAddress, hub_address, local_folder
from graft.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("hf:org/name", HubAddress("hf", "org/name")),
        ("ms:org/name-1.5B_x", HubAddress("ms", "org/name-1.5B_x")),
        ("org/name", HubAddress("hf", "org/name")),
        ("gpt2", HubAddress("hf", "gpt2")),
    ],
)
def test_an_address(source, address):
    assert hub_address(source) == address
    assert hub_address(str(address)) == address


@pytest.mark.parametrize(("value", "hub"), [("1", "ms"), ("true", "ms"), ("0", "hf"), ("", "hf")])
def test_a_plain_id_is_where_the_environment_says(monkeypatch, value, hub):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", value)
    assert hub_address("org/name").hub == hub
    assert hub_address("hf:org/name").hub == "hf"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gcs:org/name", "gcs: is no hub. Valid: hf:ORG/NAME, ms:ORG/NAME"),
        ("hf:org/name/deep", "is not an id of the form hf:ORG/NAME"),
        ("ms:name", "is not an id of the form ms:ORG/NAME"),
        ("hf:", "is not an id of the form hf:ORG/NAME"),
        ("bad name!/x", "is neither a folder here nor an id of the form hf:ORG/NAME"),
        ("https://huggingface.co/datasets/org/name/tree/main", "is a page; write hf:org/name"),
        ("https://www.modelscope.cn/models/org/name/files", "is a page; write ms:org/name"),
    ],
)
def test_what_is_no_address(source, said):
    with pytest.raises(ConfigError) as error:
        hub_address(source)
    assert said in str(error.value)


def test_a_folder_here_goes_first(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/name") is not None
    assert local_folder("org/other") is None
    assert local_folder("hf:org/name") is None
    with pytest.raises(ConfigError, match=r"no folder \./org/nam\. Did you mean"):
        local_folder("./org/nam")
