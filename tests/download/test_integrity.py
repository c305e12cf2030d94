from __future__ import annotations

import hashlib
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from graft.download import read_object, require_whole
from graft.download.integrity import digest_of
from graft.errors import CheckpointError


def test_safetensors_as_the_library_writes_them_are_whole(tmp_path):
    path = tmp_path / "model.safetensors"
    for tensors in ({"a": torch.ones(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, {}):
        save_file(tensors, path, metadata={"format": "pt"})
        require_whole(path)


@pytest.mark.parametrize("change", [-1, 1, -100])
def test_one_byte_is_enough_to_see(tmp_path, change):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(300)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(CheckpointError, match=f"{len(content) + change:,} bytes where its header"):
        require_whole(path)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"<!DOCTYPE html>" * 9, b"\x04" + bytes(7) + b"[1,]"]
)
def test_what_is_no_safetensors_file(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        require_whole(path)


def test_digests(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some content\n")
    assert digest_of(path, "0" * 64) == hashlib.sha256(b"some content\n").hexdigest()
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert digest_of(path, "0" * 40) == git.stdout.strip()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{\n  nonsense", "line 2 is not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no JSON object"),
    ],
)
def test_json_that_is_none(tmp_path, content, said):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_object(tmp_path / "config.json")
