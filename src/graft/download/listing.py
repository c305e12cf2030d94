"""What lies in a repository: the words that the hubs, the selection and the plan share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from graft.errors import ConfigError

__all__ = ["NOUNS", "Hub", "Kind", "Listing", "Offline", "RepoFile", "Unreachable", "files_in"]

Kind = Literal["model", "dataset"]
NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}


class Unreachable(ConfigError):
    """A hub that does not answer; what was downloaded before may do."""


class Offline(Unreachable):
    """A hub that the user has said not to ask."""


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository.

    Attributes:
        path: In the repository, with `/`.
        size: Bytes.
        digest: SHA-256 of the content, or git's SHA-1; empty where the hub does not say.
    """

    path: str
    size: int
    digest: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision.

    Attributes:
        name: `ORG/NAME`.
        kind: Of the repository.
        revision: Branch, tag or commit, as asked for.
        commit: The commit that this is; empty where the hub does not say.
        files: All of them.
    """

    name: str
    kind: Kind
    revision: str
    commit: str
    files: tuple[RepoFile, ...]


class Hub(Protocol):
    """What graft asks of a hub's client; both hubs answer in the same words."""

    title: str
    default_revision: str

    @property
    def endpoint(self) -> str:
        """Where the hub is asked."""
        ...

    @property
    def cache(self) -> Path:
        """The folder under which downloads are kept."""
        ...

    def list(self, name: str, kind: Kind, revision: str | None) -> Listing:
        """What there is; Unreachable where the hub does not answer, ConfigError for the rest."""
        ...

    def list_cached(self, name: str, kind: Kind, revision: str) -> Listing | None:
        """The files that are here, without asking the hub."""
        ...

    def storage(self, name: str, kind: Kind) -> Path:
        """The folder of the cache for all revisions of a repository."""
        ...

    def folder(self, listing: Listing) -> Path | None:
        """Where the files are that were downloaded before."""
        ...

    def begun(self, listing: Listing, file: RepoFile) -> int:
        """Bytes of a file that were fetched before it was cut off."""
        ...

    def fetch(self, listing: Listing, files: Sequence[RepoFile]) -> Path:
        """Download `files`, continuing what was begun; the folder that they are in."""
        ...


def files_in(folder: Path) -> tuple[RepoFile, ...]:
    """The files of a snapshot that is here, each by the path that it has in its repository."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple(
        RepoFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found
    )
