"""One source of rows: where its files are (`resolve_source`), and its rows (`read_source`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft.data.config import SourceConfig
from graft.data.formats import rename_columns
from graft.data.rows import Rows
from graft.data.sources.address import Address
from graft.data.sources.catalogue import CATALOGUE, Entry, names_in, read_entry
from graft.data.sources.files import read_files, require_file
from graft.data.sources.splits import data_files, select_files
from graft.data.sources.tags import untagged
from graft.download import Listing, RepoFile, hub_address, make_plan
from graft.errors import DataError, did_you_mean

__all__ = ["Source", "read_source", "resolve_source"]

_README = "README.md"


@dataclass(frozen=True)
class Source:
    """Files that were found, and how to read them.

    Attributes:
        name: What the user calls it.
        files: The files, in the order of their rows.
        format: How rows are laid out; `"auto"` where the columns shall tell.
        columns: Our name of a column -> the file's.
        tags: LLaMA-Factory's names of keys and roles in a turn -> the file's.
        max_rows: At most so many rows, the first ones; None for all.
        weight: How often its rows count in training.
    """

    name: str
    files: tuple[Path, ...]
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    max_rows: int | None = None
    weight: float = 1.0


def resolve_source(config: SourceConfig, dataset_dir: str | None = None) -> Source:
    """Find the files of `config`, and download them where they lie on a hub. Reads no rows.

    Args:
        config: An entry of `train` or `eval`.
        dataset_dir: The folder whose dataset_info.json may know the name that `config.path` is.

    Raises:
        DataError: Nothing is there, or it is not clear what is meant.
        ConfigError: There is no such data set on the hub.
    """
    address = Address.of(config)
    entry = None
    if dataset_dir is not None and address.hub is None:
        entry = read_entry(dataset_dir, address.name)
    rows = [count for count in (address.max_rows, entry and entry.max_rows) if count]
    given = config.format if config.format not in (None, "auto") else None
    return Source(
        name=config.path,
        files=_files(address, dataset_dir) if entry is None else _files_of_entry(entry, address),
        format=given or (entry.format if entry else "auto"),
        columns=config.columns or (entry.columns if entry else {}),
        tags=entry.tags if entry else {},
        max_rows=min(rows, default=None),
        weight=config.weight,
    )


def read_source(source: Source) -> Rows:
    """The rows of `source`, with columns, keys and roles named as graft names them.

    Raises:
        DataError: A file that cannot be read, or a column that it does not have.
    """
    rows = rename_columns(read_files(source.files, source.max_rows), source.columns)
    return untagged(rows, source.tags, source.format) if source.tags else rows


def _files(address: Address, dataset_dir: str | None) -> tuple[Path, ...]:
    name = address.name
    if address.hub is not None:
        return _files_on_hub(f"{address.hub}:{name}", address)
    if address.revision is not None:
        raise DataError(f"revision: {name} is no data set on a hub (hf:ORG/NAME, ms:ORG/NAME).")
    path = Path(name)
    if path.is_dir():
        return _files_in(path, address)
    _explain_missing(path, name, dataset_dir)
    return _file(path, address)


def _files_of_entry(entry: Entry, address: Address) -> tuple[Path, ...]:
    asked = replace(
        address, subset=address.subset or entry.subset, split=address.split or entry.split
    )
    if entry.hub is not None:
        return _files_on_hub(f"{entry.hub}:{entry.name}", asked, entry.folder)
    path = Path(entry.name)
    if not path.is_dir():
        return _file(path, address)
    if asked.subset or asked.split:
        return _files_in(path, asked)
    files = tuple(path / name for name in data_files(_names(path)))  # all of them, as there
    if not files:
        raise DataError(f"{path} holds no data file ({address.name} in {CATALOGUE}).")
    return files


def _file(path: Path, address: Address) -> tuple[Path, ...]:
    require_file(path)
    for key in ("subset", "split"):
        if getattr(address, key) is not None:
            raise DataError(f"{key}: {path} is one file, and has no {key}s.")
    return (path,)


def _files_in(folder: Path, address: Address) -> tuple[Path, ...]:
    names = _names(folder)
    readme = _text_of(folder / _README) if _README in names else ""
    picked = select_files(names, readme, address.name, address.subset, address.split)
    return tuple(folder / path for path in picked)


def _files_on_hub(source: str, address: Address, inside: str | None = None) -> tuple[Path, ...]:
    """The files of the subset and split; only these are fetched, and the README that tells them."""
    plan = make_plan(hub_address(source), _readme_or_all, "dataset", address.revision)
    names = {file.path: file for file in plan.listing.files}
    readme = _text_of(plan.fetch() / _README) if _README in names else ""
    there = [path for path in names if inside is None or path.startswith(f"{inside}/")]
    picked = select_files(there, readme, source, address.subset, address.split)
    folder = plan.changed([names[path] for path in picked]).fetch()
    return tuple(folder / path for path in picked)


def _readme_or_all(listing: Listing) -> Sequence[RepoFile]:
    return [file for file in listing.files if file.path == _README] or listing.files


def _text_of(readme: Path) -> str:
    return readme.read_text(encoding="utf-8", errors="replace")


def _names(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in found]


def _explain_missing(path: Path, name: str, dataset_dir: str | None) -> None:
    """Refuse what is no file here but looks like something else that was meant."""
    if path.exists():
        return
    if "://" in name:
        hub_address(name)  # says what to write instead
    names = [part.strip() for part in name.split(",")]
    if len(names) > 1 and all(names):
        raise DataError(
            f"{name} does not exist. Several data sets are written as a list: [{', '.join(names)}]."
        )
    if path.suffix or path.parent != Path():
        if name.count("/") == 1 and not path.suffix and not path.parent.is_dir():
            raise DataError(
                f"{name} does not exist. A data set on a hub is written hf:{name} or ms:{name}."
            )
        return
    if dataset_dir is None:
        raise DataError(
            f"{name} does not exist. If it is a name in LLaMA-Factory's {CATALOGUE}, set "
            "dataset_dir to the folder of that file."
        )
    hint = did_you_mean(name, names_in(dataset_dir))
    raise DataError(f"{name} is neither a file nor a name in {dataset_dir}/{CATALOGUE}.{hint}")
