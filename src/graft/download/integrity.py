"""Files that are not what they seem: pointers of Git LFS, weights and configs cut short."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graft.errors import CheckpointError

__all__ = ["LFS_POINTER", "digest_of", "read_object", "refuse_pointer", "require_whole"]

LFS_POINTER = b"version https://git-lfs"  # how such a file begins


def refuse_pointer(path: Path) -> None:
    """Raise a CheckpointError where Git LFS has left a pointer in place of weights."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there."
            )


def require_whole(path: Path) -> None:
    """Raise a CheckpointError unless a .safetensors file is as long as its header says."""
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise CheckpointError(
                f"{path} is no safetensors file, or was cut short within its header ({size:,} "
                "bytes); fetch it again."
            )
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CheckpointError(
                f"{path} is no safetensors file: its header cannot be read; fetch it again."
            ) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size:,} bytes where its header says {expected:,}: the download was cut "
            "short; fetch it again."
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        CheckpointError: No JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise CheckpointError(
            f"{path}{line} is not JSON: the file was cut short or edited; fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again.")
    return found


def digest_of(path: Path, like: str) -> str:
    """The digest of a file in the form of `like`: SHA-256 (64 digits), or git's of a blob (40)."""
    if len(like) == 40:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
