"""What a download would fetch, before it starts; then the download."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from graft.atomic import nearest_existing, require_room, write_text
from graft.download.address import HubAddress
from graft.download.hugging_face import HuggingFace
from graft.download.integrity import digest_of
from graft.download.listing import Hub, Kind, Listing, Offline, RepoFile, Unreachable
from graft.download.modelscope import ModelScope
from graft.download.selection import DATA_FILES, matching, require_matches, size_text
from graft.errors import CheckpointError, ConfigError

__all__ = ["Plan", "make_plan", "plan_dataset"]

_LOG = logging.getLogger("graft")
_HASHED = 16 << 20  # bytes; to hash a larger file at each start would take too long

Choice = Callable[[Listing], Sequence[RepoFile]]


@dataclass(frozen=True)
class Plan:
    """Files of a repository, and which of them are not here yet.

    Attributes:
        address: Of the repository.
        hub: The client that fetches them.
        listing: All that the repository has; what the cache has, where the hub cannot be reached.
        files: Those that are wanted.
        missing: Those of them that are to be fetched.
        unreached: Why the hub does not answer, where it does not.
    """

    address: HubAddress
    hub: Hub
    listing: Listing
    files: tuple[RepoFile, ...]
    missing: tuple[RepoFile, ...]
    unreached: Unreachable | None = None

    @property
    def bytes_missing(self) -> int:
        """What is still to be fetched, less what arrived before an interruption."""
        return sum(f.size - min(f.size, self.hub.begun(self.listing, f)) for f in self.missing)

    @property
    def bytes_free(self) -> int:
        """Room on the disk of the cache."""
        return shutil.disk_usage(nearest_existing(self.hub.cache)).free

    def changed(self, files: Sequence[RepoFile]) -> Plan:
        """The same for other files of the repository."""
        return _plan(self.address, self.hub, self.listing, files, self.unreached)

    def fetch(self) -> Path:
        """Download what is missing; the folder that holds the files.

        Raises:
            ConfigError: No room on the disk, or a hub that does not give a file.
            CheckpointError: A file that arrived damaged.
        """
        if self.unreached:
            if self.missing:
                raise self.unreached
            if not isinstance(self.unreached, Offline):
                _warn_of_age(f"{self.address} is taken from the cache", str(self.unreached))
        if not self.missing:
            folder = self.hub.folder(self.listing)
            assert folder is not None
            return folder
        require_room(self.hub.cache)
        needed, free = self.bytes_missing, self.bytes_free
        if needed > free:
            raise ConfigError(
                f"{self.address} needs {size_text(needed)} more in {self.hub.cache}, where "
                f"{size_text(free)} are free: make room, or choose another folder for downloads "
                "(HF_HOME, MODELSCOPE_CACHE, --cache-dir)."
            )
        _remember(self.hub, self.listing)
        folder = self.hub.fetch(self.listing, self.missing)
        for file in self.missing:
            self._require_as_listed(folder / file.path, file)
        return folder

    def _require_as_listed(self, path: Path, file: RepoFile) -> None:
        """The clients trust what a hub says beside the file; it is the listing that must be met."""
        size = path.stat().st_size
        if size != file.size:
            wrong = f"{size:,} bytes where {self.hub.title} lists {file.size:,}"
        elif _is_damaged(path, file):
            wrong = f"another content than {self.hub.title} lists"
        else:
            return
        for bad in (path.resolve(), path):
            bad.unlink(missing_ok=True)
        raise CheckpointError(
            f"{file.path} of {self.address} arrived with {wrong}: run the same again, or choose "
            "another mirror (HF_ENDPOINT, MODELSCOPE_ENDPOINT)."
        )


def make_plan(
    address: HubAddress,
    choose: Choice,
    kind: Kind = "model",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Plan:
    """Ask the hub what the repository has, and look what of that is here.

    Where the hub cannot be reached, what was downloaded before will do, with a warning.

    Args:
        address: Of the repository.
        choose: The files that are wanted of it.
        kind: Of the repository.
        revision: Branch, tag or commit; None for the hub's default (`main`, `master`).
        cache_dir: Where downloads are kept; None for the hub's own cache.
        token: For private repositories on Hugging Face; None for the one of `hf auth login`.

    Raises:
        Unreachable: No answer, and nothing here.
        ConfigError: No such repository or revision, or one that the user may not read.
    """
    hub: Hub = HuggingFace(cache_dir, token) if address.hub == "hf" else ModelScope(cache_dir)
    try:
        listing, unreached = hub.list(address.name, kind, revision), None
    except Unreachable as error:
        listing = _recall(hub, address.name, kind, revision or hub.default_revision)
        unreached = error
        if listing is None or not choose(listing):
            raise
    return _plan(address, hub, listing, choose(listing), unreached)


def plan_dataset(
    address: HubAddress,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] | None = None,
) -> Plan:
    """The same for the files of a data set that may hold rows, and its README.md.

    Args:
        address: Of the data set.
        revision: As in `make_plan`.
        cache_dir: As in `make_plan`.
        patterns: Globs of the files that are wanted in place of these.

    Raises:
        ConfigError: No such data set, or no such files in it.
    """
    plan = make_plan(
        address,
        lambda listing: matching(listing, patterns or DATA_FILES),
        "dataset",
        revision,
        cache_dir,
    )
    require_matches(plan.listing, patterns or ())
    if not plan.files:
        raise ConfigError(f"{address} has no files of rows: expected {', '.join(DATA_FILES[:-1])}.")
    return plan


@cache
def _warn_of_age(what: str, why: str) -> None:
    """Once, however often a model's parts are asked for."""
    _LOG.warning("%s, which may be old. %s", what, why)


def _plan(
    address: HubAddress,
    hub: Hub,
    listing: Listing,
    files: Sequence[RepoFile],
    unreached: Unreachable | None,
) -> Plan:
    folder = hub.folder(listing)
    missing = [f for f in files if folder is None or not _is_here(folder, f, listing)]
    return Plan(address, hub, listing, tuple(files), tuple(missing), unreached)


def _memory(hub: Hub, name: str, kind: Kind, revision: str) -> Path:
    return hub.storage(name, kind) / f"listing-{revision.replace('/', '--')}.json"


def _remember(hub: Hub, listing: Listing) -> None:
    """Keep the listing, so that half a data set is not taken for the whole without the hub."""
    path = _memory(hub, listing.name, listing.kind, listing.revision)
    write_text(path, json.dumps(asdict(listing)))


def _recall(hub: Hub, name: str, kind: Kind, revision: str) -> Listing | None:
    """The listing of the last download; of what others have downloaded, the files that are here."""
    path = _memory(hub, name, kind, revision)
    if not path.is_file():
        return hub.list_cached(name, kind, revision)
    listing = json.loads(path.read_text(encoding="utf-8"))
    return Listing(**{**listing, "files": tuple(RepoFile(**file) for file in listing["files"])})


def _is_here(folder: Path, file: RepoFile, listing: Listing) -> bool:
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    # A folder of a commit never changes, that of a branch may: a config may be other than before.
    return bool(listing.commit) or not _is_damaged(path, file)


def _is_damaged(path: Path, file: RepoFile) -> bool:
    if not file.digest or file.size > _HASHED:
        return False
    return digest_of(path, file.digest) != file.digest
