"""What a source's `path` says, taken apart: where the data is, and which of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from graft.data.config import HUBS, SourceConfig
from graft.errors import DataError

__all__ = ["Address"]

# hf:ORG/NAME, ms-swift's hf::ORG/NAME; then, in any order, :SUBSET, @REVISION and #ROWS.
_HUB = re.compile(r"(?P<hub>hf|ms)::?(?P<repo>[^:@#]+)(?P<rest>([:@#][^:@#]+)*)")
_PARTS = {":": "subset", "@": "revision", "#": "max_rows"}


@dataclass(frozen=True)
class Address:
    """Where a source is.

    Attributes:
        hub: `"hf"` or `"ms"`; None for what lies here.
        name: `ORG/NAME` on the hub, else a path or a name in dataset_info.json.
        subset: Which subset, or None.
        split: Which split, or None.
        revision: Branch, tag or commit on the hub, or None.
        max_rows: At most so many rows, or None for all.
    """

    hub: str | None
    name: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    max_rows: int | None = None

    @classmethod
    def of(cls, config: SourceConfig) -> Address:
        """The address that `config` gives in its `path` and beside it.

        Raises:
            DataError: A path of a hub that cannot be understood, or that says twice what differs.
        """
        hub, name, said = _taken_apart(config.path)
        for key in ("subset", "revision"):
            beside = getattr(config, key)
            if beside is not None and said.setdefault(key, beside) != beside:
                raise DataError(
                    f"{config.path} names the {key} {said[key]!r}, and {key}: {beside!r} is given "
                    "beside it: keep one."
                )
        rows = [count for count in (_count(config.path, said), config.max_rows) if count]
        return cls(
            hub,
            name,
            said.get("subset"),
            config.split,
            said.get("revision"),
            min(rows, default=None),
        )


def _taken_apart(path: str) -> tuple[str | None, str, dict[str, str]]:
    if path.startswith(HUBS):
        match = _HUB.fullmatch(path)
        parts = re.findall(r"([:@#])([^:@#]+)", match["rest"]) if match else []
        said = {_PARTS[mark]: text for mark, text in parts}
        if match is None or len(said) < len(parts) or match["repo"].count("/") > 1:
            raise DataError(
                f"{path} is no data set on a hub: expected hf:ORG/NAME or ms:ORG/NAME, then "
                "perhaps :SUBSET, @REVISION and #ROWS, each once."
            )
        return match["hub"], match["repo"], said
    name, mark, count = path.rpartition("#")
    if mark and count.isdecimal() and not Path(path).exists():
        return None, name, {"max_rows": count}
    return None, path, {}


def _count(path: str, said: dict[str, str]) -> int | None:
    text = said.get("max_rows")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"{path}: after # comes how many rows to take, not {text!r}.")
    return int(text)
