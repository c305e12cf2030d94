"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.errors import ConfigError

__all__ = [
    "nearest_existing",
    "require_place",
    "require_room",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_text",
]


def nearest_existing(path: Path) -> Path:
    """`path`, or the first folder above it that is there."""
    return next(there for there in (path, *path.absolute().parents) if there.exists())


def require_room(folder: Path) -> None:
    """Raise a ConfigError unless `folder` could be made, or is there and can be written to."""
    there = nearest_existing(folder)
    if not there.is_dir():
        raise ConfigError(f"{folder} cannot be made: {there} is a file.")
    if not os.access(there, os.W_OK) or not there.stat().st_mode & 0o222:
        raise ConfigError(f"{folder} cannot be written: no permission for {there}.")


def require_place(path: Path) -> None:
    """Raise a ConfigError unless a file could be written at `path`."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file.")
    require_room(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whatever happens."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the new one, whatever happens."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `target` once it is complete and on disk.

    Its folder is made where there is none. Its name is its own, so that several processes may
    write `target` at once; the last one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target` once it is complete and on disk."""
    partial = target.with_name(f".{target.name}.partial")
    former = target.with_name(f".{target.name}.former")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
