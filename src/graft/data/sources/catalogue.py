"""LLaMA-Factory's dataset_info.json: names of data sets -> where they are, how they are laid out.

What graft cannot do (preference data, pictures, loading scripts) is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.data.sources.tags import TAGS
from graft.download import default_hub
from graft.errors import DataError, did_you_mean

__all__ = ["CATALOGUE", "Entry", "names_in", "read_entry"]

CATALOGUE = "dataset_info.json"

# Its name of a column -> graft's, for each of its layouts; and the layout's name here.
_ASIDE = {"system": "system", "tools": "tools"}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_ALPACA |= _ASIDE
_LAYOUTS = {
    "alpaca": ("alpaca", _ALPACA),
    "sharegpt": ("sharegpt", {"messages": "conversations", **_ASIDE}),
    "openai": ("messages", {"messages": "messages", **_ASIDE}),
}
_PLACES = ("hf_hub_url", "ms_hub_url", "file_name")
_TEXTS = (*_PLACES, "formatting", "subset", "split", "folder")
_KEYS = (*_TEXTS, "columns", "tags", "num_samples", "ranking")
_UNSUPPORTED = {
    "script_url": "loading scripts run code of others",
    "cloud_file_name": "files in cloud storage are not fetched",
    "ranking": "preference data are not learned",
    "images": "pictures are not learned",
    "videos": "videos are not learned",
    "audios": "audio is not learned",
    "chosen": "preference data are not learned",
    "rejected": "preference data are not learned",
    "kto_tag": "preference data are not learned",
}


@dataclass(frozen=True)
class Entry:
    """What dataset_info.json says of one name.

    Attributes:
        hub: `"hf"` or `"ms"`; None for files beside dataset_info.json.
        name: The data set on the hub, or the path of a file or folder here.
        format: graft's name of its layout.
        columns: graft's name of a column -> the file's.
        tags: LLaMA-Factory's names of keys and roles in a turn -> the file's.
        subset: Its subset, or None.
        split: Its split, or None.
        folder: The folder of the data set to look in, or None.
        max_rows: At most so many rows, or None.
    """

    hub: str | None
    name: str
    format: str
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    subset: str | None = None
    split: str | None = None
    folder: str | None = None
    max_rows: int | None = None


def read_entry(dataset_dir: str, name: str) -> Entry | None:
    """What `dataset_dir`'s dataset_info.json says of `name`; None where it does not know it.

    Raises:
        DataError: No such file, a broken one, or an entry that graft cannot follow.
    """
    path = Path(dataset_dir) / CATALOGUE
    described = _catalogue(path).get(name)
    if described is None:
        return None
    where = f"{path}, {name}"
    if not isinstance(described, dict):
        raise DataError(f"{where}: expected an object with file_name, hf_hub_url or ms_hub_url.")
    _refuse_unsupported(described, where)
    hub, location = _place(described, where)
    layout, known = _layout(described, where)
    columns = _table(described, "columns", known, where)
    count = described.get("num_samples")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise DataError(f"{where}: num_samples is {count!r}: expected how many rows to take.")
    text = layout == "alpaca" and list(columns) == ["prompt"]  # its way to say plain text
    return Entry(
        hub=hub,
        name=location if hub else str(path.parent / location),
        format="text" if text else layout,
        columns={"text" if text else known[key]: theirs for key, theirs in columns.items()},
        tags=_table(described, "tags", TAGS, where),
        subset=described.get("subset"),
        split=described.get("split"),
        folder=described.get("folder"),
        max_rows=count,
    )


def names_in(dataset_dir: str) -> list[str]:
    """The names that `dataset_dir`'s dataset_info.json knows."""
    return list(_catalogue(Path(dataset_dir) / CATALOGUE))


def _catalogue(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"dataset_dir: {path.parent} holds no {CATALOGUE}.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    if not isinstance(entries, dict):
        raise DataError(f"{path}: expected an object: names of data sets, and what each is.")
    return entries


def _refuse_unsupported(described: dict[str, Any], where: str) -> None:
    columns = described.get("columns")
    sections = [described, columns] if isinstance(columns, dict) else [described]
    given = {key for section in sections for key, value in section.items() if value}
    # A name in LLaMA-Factory's own table that also lies on a hub names a script beside it.
    reachable = any(described.get(place) for place in _PLACES[:2])
    for key, why in _UNSUPPORTED.items():
        if key in given and not (reachable and key in ("script_url", "cloud_file_name")):
            raise DataError(f"{where}: {key} cannot be used: {why} here.")
    for key, value in described.items():
        if key not in _KEYS and key not in _UNSUPPORTED and key != "om_hub_url":
            raise DataError(f"{where}: {key!r} is not a key of it.{did_you_mean(key, _KEYS)}")
        if key in _TEXTS and not isinstance(value, str | None):
            raise DataError(f"{where}: {key} is {value!r}: expected text.")


def _place(described: dict[str, Any], where: str) -> tuple[str | None, str]:
    """Hub and name. Of two hubs it is Hugging Face, unless USE_MODELSCOPE_HUB says otherwise."""
    on = {"hf": described.get("hf_hub_url"), "ms": described.get("ms_hub_url")}
    if on["ms"] and default_hub() == "ms":
        return "ms", on["ms"]
    for hub, name in on.items():
        if name:
            return hub, name
    if not described.get("file_name"):
        raise DataError(f"{where}: it has none of {', '.join(_PLACES)}, so nothing can be read.")
    return None, described["file_name"]


def _layout(described: dict[str, Any], where: str) -> tuple[str, dict[str, str]]:
    formatting = described.get("formatting") or "alpaca"
    if formatting not in _LAYOUTS:
        hint = did_you_mean(formatting, _LAYOUTS)
        raise DataError(f"{where}: formatting {formatting!r} is not known.{hint}")
    return _LAYOUTS[formatting]


def _table(
    described: dict[str, Any], section: str, known: dict[str, str], where: str
) -> dict[str, str]:
    table = described.get(section) or {}
    if not isinstance(table, dict):
        raise DataError(f"{where}: {section}: expected an object.")
    table = {key: value for key, value in table.items() if value}
    for key, value in table.items():
        if key not in known:
            raise DataError(f"{where}: {section}: {key!r} is not known.{did_you_mean(key, known)}")
        if not isinstance(value, str):
            raise DataError(f"{where}: {section}: {key} is {value!r}: expected text.")
    return table
