"""ModelScope through its own client, and what the client raises as a sentence each."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graft.download.listing import NOUNS, Kind, Listing, RepoFile, Unreachable, files_in
from graft.errors import CheckpointError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from modelscope_hub import HubApi, HubConfig

__all__ = ["ModelScope"]

_SETTINGS = {  # of the client, which reads them when it is imported
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",  # says after 1 s that there is no connection
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": "86400",  # its hour is short for a large file
}


class ModelScope:
    """A `Hub`: modelscope.cn, or where MODELSCOPE_ENDPOINT (once MODELSCOPE_DOMAIN) leads."""

    title = "ModelScope"
    default_revision = "master"

    def __init__(self, cache_dir: str | Path | None) -> None:
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else None

    @property
    def endpoint(self) -> str:
        """As the client has it."""
        return str(self._config.endpoint)

    @property
    def cache(self) -> Path:
        """As the client has it, unless another was given."""
        return self._cache_dir or self._config.cache_dir

    @cached_property
    def _api(self) -> HubApi:
        config = self._config
        from modelscope_hub import HubApi

        return HubApi(config)

    @cached_property
    def _config(self) -> HubConfig:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from modelscope_hub import HubConfig
        except ImportError:
            raise ConfigError(
                "ms: needs ModelScope's client: pip install 'graft-peft[modelscope]'."
            ) from None

        class Config(HubConfig):
            def get_session_id(self) -> str:
                """No number that follows the user from one download to the next."""
                return "0" * 32

        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # graft says it itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MODELSCOPE_DOMAIN is old, and does
            return Config()

    def list(self, name: str, kind: Kind, revision: str | None) -> Listing:
        """The files of `name`."""
        with self._sentences(name, kind, revision):
            found = self._api.list_repo_files(name, kind, revision=revision)
        files = tuple(
            RepoFile(entry.path, entry.size, entry.sha256 or "")
            for entry in found
            if entry.type != "tree"
        )
        return Listing(name, kind, revision or self.default_revision, "", files)

    def list_cached(self, name: str, kind: Kind, revision: str) -> Listing | None:
        """What the cache holds of `name` at `revision`."""
        folder = self.folder(Listing(name, kind, revision, "", ()))
        return folder and Listing(name, kind, revision, "", files_in(folder))

    def storage(self, name: str, kind: Kind) -> Path:
        """As the client lays out its cache."""
        return self.cache / f"{kind}s" / name.replace("/", "--")

    def folder(self, listing: Listing) -> Path | None:
        """The snapshot in the cache, whole or not."""
        _ = self._config
        from modelscope_hub import CacheNotFound

        try:
            return self._api.download_repo(
                listing.name,
                listing.kind,
                revision=listing.revision,
                cache_dir=self.cache,
                local_files_only=True,
            )
        except CacheNotFound:
            return None

    def begun(self, listing: Listing, file: RepoFile) -> int:
        """Bytes of the file that the client has left for the next call."""
        folder = self.folder(listing)
        partial = folder and folder / f"{file.path}.incomplete"
        return partial.stat().st_size if partial and partial.is_file() else 0

    def fetch(self, listing: Listing, files: Sequence[RepoFile]) -> Path:
        """Download `files`; the client continues each where it was cut off."""
        entries = [
            {"Path": file.path, "Size": file.size, "Sha256": file.digest or None} for file in files
        ]
        with self._sentences(listing.name, listing.kind, listing.revision):
            return self._api.download_repo(
                listing.name,
                listing.kind,
                revision=listing.revision,
                cache_dir=self.cache,
                file_list=entries,
            )

    @contextmanager
    def _sentences(self, name: str, kind: Kind, revision: str | None) -> Iterator[None]:
        """Turn the client's errors inside the block into a sentence each."""
        _ = self._config  # sets the client up before it is imported
        from modelscope_hub import FileDownloadError, HubError, NotExistError

        try:
            yield
        except FileDownloadError as error:
            path, cause = next(iter(error.failed_files.items()))
            if isinstance(cause, NotExistError):
                raise ConfigError(f"{name} on {self.title} lists {path}, but has it not.") from None
            raise self._failure(name, path, cause) from None
        except NotExistError:
            raise self._missing(name, kind, revision) from None
        except (HubError, OSError) as error:
            raise self._failure(name, "", error) from None

    def _failure(self, name: str, path: str, error: BaseException) -> Exception:
        """The sentence for what went wrong with one file, or with the listing."""
        import modelscope_hub as client

        again = "run the same again; what has arrived is kept"
        match error:
            case client.AuthenticationError() | client.PermissionDeniedError():
                return ConfigError(
                    f"{self.title} refuses {name} ({error.status_code}): it is private, or its "
                    "terms must be accepted on its page; log in with `modelscope login`, or set "
                    "MODELSCOPE_API_TOKEN."
                )
            case client.FileSizeMismatchError():
                return CheckpointError(
                    f"{path} of {name} arrived with another number of bytes than {self.title} "
                    "lists: run the same again later, or take another revision."
                )
            case client.FileIntegrityError():
                return CheckpointError(
                    f"{path} of {name} arrived damaged: its content is not what {self.title} "
                    "lists. Run the same again."
                )
            case client.ServerError():
                return Unreachable(
                    f"{self.title} ({self.endpoint}) is out of order: it answers "
                    f"{error.status_code}. Try again later; what has arrived is kept."
                )
            case client.RateLimitError():
                return ConfigError(
                    f"{self.title} has been asked too often from here: wait some minutes."
                )
            case client.NetworkError():
                return Unreachable(
                    f"The connection to {self.title} ({self.endpoint}) broke off: {again}."
                    if path
                    else f"There is no folder {name} here, and {self.title} ({self.endpoint}) "
                    "cannot be reached: check the connection and the proxy, or set "
                    "MODELSCOPE_ENDPOINT."
                )
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return ConfigError(
                    f"The disk of {self.cache} is full: make room, or choose another folder for "
                    f"downloads (MODELSCOPE_CACHE, --cache-dir), then {again}."
                )
        what = f"{path} of {name}" if path else name
        return ConfigError(f"{self.title} does not give {what}: {error}")

    def _missing(self, name: str, kind: Kind, revision: str | None) -> ConfigError:
        """The revision is missing, or the repository: the list of revisions tells."""
        known = self._revisions(name, kind)
        other: Kind = "dataset" if kind == "model" else "model"
        if known:
            return ConfigError(
                f"{name} has no revision {revision!r} on {self.title}."
                f"{did_you_mean(str(revision), known)}"
            )
        if self._revisions(name, other):
            return ConfigError(f"{name} on {self.title} is a {NOUNS[other]}, not a {NOUNS[kind]}.")
        return ConfigError(
            f"There is no {NOUNS[kind]} {name} on {self.title} (and no folder {name} here), or it "
            "is private: check the name, which may differ from the one on Hugging Face, or log in "
            "with `modelscope login`."
        )

    def _revisions(self, name: str, kind: Kind) -> list[str]:
        from modelscope_hub import HubError

        with suppress(HubError):
            return [str(found["Revision"]) for found in self._api.list_repo_revisions(name, kind)]
        return []
