"""A name in a run file or on the command line -> the hub and the repository that it means."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graft.errors import ConfigError, did_you_mean

__all__ = ["HubAddress", "default_hub", "hub_address", "local_folder"]

_ON = {"1", "true", "yes", "on"}
_PAGES = re.compile(
    r"https?://(?:www\.)?(?:(?P<hf>huggingface\.co|hf\.co|hf-mirror\.com)|modelscope\.(?:cn|ai))/"
    r"(?:models/|datasets/)?(?P<name>[\w.-]+/[\w.-]+)"
)


@dataclass(frozen=True)
class HubAddress:
    """A repository on a hub.

    Attributes:
        hub: `hf` for Hugging Face, `ms` for ModelScope.
        name: `ORG/NAME`; a few old models on Hugging Face have no `ORG`.
    """

    hub: Literal["hf", "ms"]
    name: str

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}"


def hub_address(source: str) -> HubAddress:
    """The repository that `source` names.

    Args:
        source: `hf:ORG/NAME`, `ms:ORG/NAME`, or `ORG/NAME`, which is on Hugging Face, or on
            ModelScope where the environment variable USE_MODELSCOPE_HUB is 1.

    Raises:
        ConfigError: Another hub, or what is no id.
    """
    page = _PAGES.match(source)
    if page:
        hub = "hf" if page["hf"] else "ms"
        raise ConfigError(f"{source} is a page; write {hub}:{page['name']}.")
    prefix, colon, name = source.partition(":")
    if not colon:
        prefix, name = default_hub(), source
    if prefix not in ("hf", "ms"):
        raise ConfigError(f"{source!r}: {prefix}: is no hub. Valid: hf:ORG/NAME, ms:ORG/NAME.")
    form = r"[\w.-]+/[\w.-]+" if prefix == "ms" else r"(?:[\w.-]+/)?[\w.-]+"
    if not re.fullmatch(form, name):
        where = "" if colon else "neither a folder here nor "
        raise ConfigError(
            f"{source!r} is {where or 'not '}an id of the form {prefix}:ORG/NAME, such as "
            f"{prefix}:Qwen/Qwen3-0.6B."
        )
    return HubAddress(prefix, name)


def local_folder(source: str | Path) -> Path | None:
    """The folder here that `source` names; None where it is the id of a repository.

    Raises:
        ConfigError: A path that leads to no folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    text = str(source)
    if re.match(r"[a-z]{2,}:", text):
        return None
    if folder.exists():
        raise ConfigError(f"{source} is a file; give the folder that it is in.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        siblings = [str(p) for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise ConfigError(f"There is no folder {source}.{did_you_mean(str(folder), siblings)}")
    return None


def default_hub() -> str:
    """The hub that a plain `ORG/NAME` is on, `hf` or `ms`."""
    return "ms" if os.environ.get("USE_MODELSCOPE_HUB", "").lower() in _ON else "hf"
