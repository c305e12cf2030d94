"""A folder of data files -> the files of one subset and split, in order.

What there is to choose from is said by the README's `configs:`, as on Hugging Face; where it says
nothing, by the names of folders and files (`train-00000-of-00002.parquet`, `en/test.jsonl`).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from graft.data.sources.files import READERS
from graft.errors import DataError, did_you_mean

__all__ = ["files_in", "select_files"]

# split -> its files in order; such a table for each subset
Splits = dict[str, list[Path]]

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
# `data` is where many data sets keep their files; it names no subset.
_NO_SUBSET = {*_SPLITS, "data"}
_ABOUT = re.compile(r"(dataset_infos?|croissant|state|config|readme|license.*|requirements)\.\w+")
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")


def select_files(
    folder: Path, name: str, subset: str | None, split: str | None
) -> tuple[Path, ...]:
    """The files in `folder` of a subset and split.

    Args:
        folder: The folder, such as a snapshot of a data set on a hub.
        name: What to call it in messages.
        subset: Its subset; None for the only one, or the one marked as the default.
        split: Its split, or the path of one file in `folder`; None for `train`, or the only one.

    Raises:
        DataError: There is no such subset or split, or several to choose from.
    """
    files = files_in(folder)
    if not files:
        kinds = ", ".join(kind.lstrip(".") for kind in READERS)
        raise DataError(f"{name} holds no data file ({kinds}).")
    if split is not None and subset is None and folder / split in files:
        return (folder / split,)
    subsets, default = _declared(folder, name) or _by_name(folder, files)
    chosen = _choose(name, "subset", subset, list(subsets), default)
    splits = subsets[chosen]
    picked = splits[_choose(name, "split", split, list(splits), "train")]
    kinds = {path.suffix.lower() for path in picked}
    if len(kinds) > 1:
        there = ", ".join(str(path.relative_to(folder)) for path in picked[:6])
        raise DataError(
            f"{name} holds these rows in several kinds of file ({there}): choose one by its path "
            f"in the data set, such as split: {picked[0].relative_to(folder)}."
        )
    return tuple(picked)


def files_in(folder: Path) -> list[Path]:
    """The data files in `folder` and below, in order; not those that only tell about it."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READERS
        and path.is_file()
        and not _ABOUT.fullmatch(path.name.lower())
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=_in_order)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece)
        for piece in re.split(r"(\d+)", path.as_posix())
    ]


def _choose(name: str, what: str, given: str | None, there: list[str], default: str | None) -> str:
    if given is None:
        if len(there) == 1:
            return there[0]
        if default in there:
            return default
        listed = ", ".join(there[:20]) + (", ..." if there[20:] else "")
        raise DataError(f"{name} has several {what}s; choose one with {what}: {listed}.")
    if given not in there:
        raise DataError(f"{name} has no {what} {given!r}.{did_you_mean(given, there)}")
    return given


def _by_name(folder: Path, files: list[Path]) -> tuple[dict[str, Splits], str | None]:
    """Subsets by the folders, splits by words in the names, or else by the files' own names."""
    subsets: dict[str, Splits] = {}
    for path in files:
        *folders, stem = path.relative_to(folder).with_suffix("").parts
        words = [word for part in [*folders, stem] for word in re.split(r"[^a-z]+", part.lower())]
        named = [_SPLITS[word] for word in words if word in _SPLITS]
        split = named[-1] if named else _SHARD.sub("", stem) or stem
        subset = "/".join(part for part in folders if part.lower() not in _NO_SUBSET) or "default"
        subsets.setdefault(subset, {}).setdefault(split, []).append(path)
    return subsets, "default"


def _declared(folder: Path, name: str) -> tuple[dict[str, Splits], str | None] | None:
    """What the README's `configs:` says, and which subset is the default."""
    readme = folder / "README.md"
    match = None
    if readme.is_file():
        text = readme.read_text(encoding="utf-8-sig", errors="replace")
        match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        card = None  # a card for people; then the names of the files decide
    entries = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(entries, list):
        return None
    subsets: dict[str, Splits] = {}
    default = "default"
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        title = str(entry.get("config_name", "default"))
        splits = _splits_of(folder, entry)
        if splits:
            subsets[title] = splits
        if entry.get("default") is True:
            default = title
    return (subsets, default) if subsets else None


def _splits_of(folder: Path, entry: dict[str, Any]) -> Splits:
    base = str(entry.get("data_dir") or ".")
    given = entry.get("data_files")
    if given is None:
        inside = [path for path in files_in(folder) if path.is_relative_to(folder / base)]
        if not inside or not _stays_inside(base):
            return {}
        splits: Splits = {}
        for table in _by_name(folder / base, inside)[0].values():
            for split, paths in table.items():
                splits.setdefault(split, []).extend(paths)
        return splits
    if not isinstance(given, list):
        given = [given]
    patterns: dict[str, list[str]] = {}
    for part in given:
        if isinstance(part, dict):
            path = part.get("path")
            paths = path if isinstance(path, list) else [path]
            patterns.setdefault(str(part.get("split", "train")), []).extend(map(str, paths))
        else:
            patterns.setdefault("train", []).append(str(part))
    splits = {
        split: [path for pattern in globs for path in _matching(folder, base, pattern)]
        for split, globs in patterns.items()
    }
    return {split: paths for split, paths in splits.items() if paths}


def _matching(folder: Path, base: str, pattern: str) -> list[Path]:
    whole = str(PurePosixPath(base) / pattern)
    if not _stays_inside(whole):
        return []
    return sorted((path for path in folder.glob(whole) if path.is_file()), key=_in_order)


def _stays_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
