"""The files of a data set -> those of one subset and split, in order.

What there is to choose from is said by the README's `configs:`, as on Hugging Face; where it says
nothing, by the names of folders and files (`train-00000-of-00002.parquet`, `en/test.jsonl`).
Works on names, so that a hub need not send what is not wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import yaml

from graft.data.sources.files import READERS
from graft.errors import DataError, did_you_mean

__all__ = ["data_files", "select_files"]

# split -> its files in order; such a table for each subset
Splits = dict[str, list[str]]

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_NO_SUBSET = {*_SPLITS, "data"}  # `data` is where many data sets keep their files
_ABOUT = re.compile(r"(dataset_infos?|croissant|state|config|readme|license.*|requirements)\.\w+")
_SHARD = re.compile(r"[-_.]?\d+(-of-(?P<count>\d+))?$")


def select_files(
    paths: Iterable[str], readme: str, name: str, subset: str | None, split: str | None
) -> list[str]:
    """Those of `paths` that hold a subset and split, shards in order.

    Args:
        paths: The files of the data set, relative to its folder.
        readme: The text of its README.md, or nothing.
        name: What to call the data set in messages.
        subset: Its subset; None for the only one, or the one marked as the default.
        split: Its split, or one of `paths`; None for `train`, or the only one.

    Raises:
        DataError: There is no such subset or split, or several to choose from, or shards lack.
    """
    paths = list(paths)
    files = data_files(paths)
    if not files:
        raise DataError(f"{name} holds no data file that can be read{_instead(name, paths)}.")
    if split in files:
        return [split]
    subsets, default = _declared(readme, files) or _by_name(files)
    chosen = subsets[_choose(name, "subset", subset, list(subsets), default)]
    picked = chosen[_choose(name, "split", split, list(chosen), "train")]
    if len({PurePosixPath(path).suffix.lower() for path in picked}) > 1:
        raise DataError(
            f"{name} holds these rows in files of several kinds ({', '.join(picked[:6])}): choose "
            f"one of them, such as split: {picked[0]}."
        )
    _require_shards(name, picked)
    return picked


def data_files(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that may hold rows, in order; not those that only tell about them."""
    found = [
        path
        for path in paths
        if PurePosixPath(path).suffix.lower() in READERS
        and not _ABOUT.fullmatch(PurePosixPath(path).name.lower())
        and not any(part.startswith(".") for part in PurePosixPath(path).parts)
    ]
    return sorted(found, key=_in_order)


def _in_order(path: str) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    pieces = re.split(r"(\d+)", path)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _instead(name: str, paths: list[str]) -> str:
    kinds = ", ".join(kind.lstrip(".") for kind in READERS)
    if any(path.endswith(".py") for path in paths) and name.startswith("hf:"):
        return (
            f" ({kinds}), but a loading script, which is not run; Hugging Face may have its rows "
            f"as Parquet: {name}@refs/convert/parquet"
        )
    others = sorted({PurePosixPath(path).suffix for path in paths if PurePosixPath(path).suffix})
    there = f"; its files are of the kinds {', '.join(others[:8])}" if others else ""
    return f" ({kinds}){there}"


def _choose(name: str, what: str, given: str | None, there: list[str], default: str) -> str:
    listed = ", ".join(there[:20]) + (", ..." if there[20:] else "")
    if given is None:
        if default in there:
            return default
        # To learn from rows that are meant for a test, one has to say so.
        if len(there) == 1 and (what == "subset" or there[0] not in ("validation", "test")):
            return there[0]
        several = f"several {what}s" if len(there) > 1 else f"no {what} {default!r}"
        raise DataError(f"{name} has {several}; choose one with {what}: {listed}.")
    if given not in there:
        raise DataError(f"{name} has no {what} {given!r}.{did_you_mean(given, there)}")
    return given


def _require_shards(name: str, picked: list[str]) -> None:
    shards = [_SHARD.search(PurePosixPath(path).stem) for path in picked]
    counts = {int(shard["count"]) for shard in shards if shard and shard["count"]}
    if len(counts) == 1 and all(shards) and len(picked) < (count := counts.pop()):
        there = f"{len(picked)} of {count} files, the first is {picked[0]}"
        raise DataError(f"{name} is not whole here: it has {there}. Get it again.")


def _by_name(files: list[str]) -> tuple[dict[str, Splits], str]:
    """Subsets by the folders; splits by words in the names, or else by the files' own names."""
    subsets: dict[str, list[str]] = {}
    for path in files:
        folders = PurePosixPath(path).parts[:-1]
        subset = "/".join(part for part in folders if part.lower() not in _NO_SUBSET)
        subsets.setdefault(subset or "default", []).append(path)
    return {name: _by_word(paths) or _by_stem(paths) for name, paths in subsets.items()}, "default"


def _by_word(paths: list[str]) -> Splits | None:
    """None where a file tells no split, or files that differ in more would be one split: a folder
    of unlike files, of which none may be taken, or left, without a word."""
    splits: Splits = {}
    series: dict[str, list[str]] = {}
    for path in paths:
        *folders, stem = (_words(part) for part in PurePosixPath(path).with_suffix("").parts)
        by_folder = [word for words in folders for word in words if word in _SPLITS]
        named = [*by_folder, *(word for word in stem if word in _SPLITS)]
        if not named:
            return None
        split = _SPLITS[named[-1]]
        rest = [] if by_folder else [word for word in stem if word not in _SPLITS]
        if series.setdefault(split, rest) != rest:
            return None
        splits.setdefault(split, []).append(path)
    return splits


def _by_stem(paths: list[str]) -> Splits:
    splits: Splits = {}
    for path in paths:
        stem = PurePosixPath(path).stem
        splits.setdefault(_SHARD.sub("", stem) or stem, []).append(path)
    return splits


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W\d_]+", name.lower()) if word]


def _declared(readme: str, files: list[str]) -> tuple[dict[str, Splits], str] | None:
    """What the README's `configs:` says, and which subset is the default."""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---", readme, re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None  # a card for people; then the names of the files decide
    entries = card.get("configs") if isinstance(card, dict) else None
    subsets: dict[str, Splits] = {}
    default = "default"
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        title = str(entry.get("config_name", "default"))
        splits = _splits_of(entry, files)
        if splits:
            subsets[title] = splits
        if entry.get("default") is True:
            default = title
    return (subsets, default) if subsets else None


def _splits_of(entry: dict[str, Any], files: list[str]) -> Splits:
    base = str(PurePosixPath(str(entry.get("data_dir") or ".")))
    inside = files if base == "." else [path for path in files if path.startswith(f"{base}/")]
    given = entry.get("data_files")
    splits: Splits = {}
    if given is None:
        for table in _by_name(inside)[0].values():
            for split, paths in table.items():
                splits.setdefault(split, []).extend(paths)
        return splits
    for part in given if isinstance(given, list) else [given]:
        named = part if isinstance(part, dict) else {"path": part}
        patterns = named.get("path")
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            glob = _glob(str(PurePosixPath(base) / str(pattern)))
            found = [path for path in files if glob.fullmatch(path)]
            if found:
                split = str(named.get("split", "train"))
                splits[split] = list(dict.fromkeys([*splits.get(split, []), *found]))
    return splits


def _glob(pattern: str) -> re.Pattern[str]:
    """`pattern` as a regular expression: `*` stays in a folder, `**` goes through folders."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern):
        is_set = piece.startswith("[") and piece.endswith("]")
        out += known.get(piece) or (piece.replace("[!", "[^") if is_set else re.escape(piece))
    return re.compile(out)
