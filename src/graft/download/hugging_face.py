"""Hugging Face through its own client, and what the client raises as a sentence each.

Since its version 2 the client throws away what had arrived of a file when it is interrupted. So
large files are fetched here with the client's `http_get` into `blobs/DIGEST.incomplete`, which a
second call continues (`docs/decisions/0007`); the rest, and the cache's layout, are the client's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, tqdm

from graft.atomic import write_text
from graft.download.integrity import digest_of
from graft.download.listing import (
    NOUNS,
    Kind,
    Listing,
    Offline,
    RepoFile,
    Unreachable,
    files_in,
)
from graft.download.workers import side_by_side
from graft.errors import CheckpointError, ConfigError, did_you_mean

__all__ = ["HuggingFace"]

_LARGE = 16 << 20  # bytes; a smaller file is soon fetched again
_XET_ONLY = 50_000_000_000  # bytes; plain HTTP does not give more


class HuggingFace:
    """A `Hub`: huggingface.co, or where HF_ENDPOINT leads."""

    title = "Hugging Face"
    default_revision = constants.DEFAULT_REVISION

    def __init__(self, cache_dir: str | Path | None, token: str | bool | None = None) -> None:
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._token = token
        self._api = HfApi(token=token)

    @property
    def endpoint(self) -> str:
        """As the client has it."""
        return self._api.endpoint

    def list(self, name: str, kind: Kind, revision: str | None) -> Listing:
        """The files of `name`, in one request."""
        with self._sentences(name, kind, revision):
            found = self._api.repo_info(
                name,
                repo_type=kind,
                revision=revision,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                files_metadata=True,
            )
        files = tuple(
            RepoFile(
                entry.rfilename,
                entry.size or 0,
                entry.lfs.sha256 if entry.lfs else entry.blob_id or "",
            )
            for entry in getattr(found, "siblings", None) or ()
        )
        return Listing(name, kind, revision or self.default_revision, found.sha or "", files)

    def list_cached(self, name: str, kind: Kind, revision: str) -> Listing | None:
        """What the cache holds of `name` at `revision`."""
        reference = self.storage(name, kind) / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        listing = Listing(name, kind, revision, commit, ())
        folder = self.folder(listing)
        return folder and Listing(name, kind, revision, commit, files_in(folder))

    def folder(self, listing: Listing) -> Path | None:
        """The snapshot in the cache, whole or not."""
        folder = self.storage(listing.name, listing.kind) / "snapshots" / listing.commit
        return folder if folder.is_dir() else None

    def begun(self, listing: Listing, file: RepoFile) -> int:
        """Bytes of the file that an earlier call was cut off after."""
        partial = self._partial(listing, file)
        return partial.stat().st_size if partial.is_file() else 0

    def fetch(self, listing: Listing, files: Sequence[RepoFile]) -> Path:
        """Several at a time; a large file is continued where it was cut off."""
        with self._sentences(listing.name, listing.kind, listing.revision, fetching=True):
            side_by_side(lambda file, stop: self._fetch_one(listing, file, stop), files)
            storage = self.storage(listing.name, listing.kind)
            if listing.revision != listing.commit:  # how the cache finds a branch without the hub
                reference = storage / "refs" / listing.revision
                write_text(reference, listing.commit)
        return storage / "snapshots" / listing.commit

    def _fetch_one(self, listing: Listing, file: RepoFile, stop: Event) -> None:
        if self._is_resumed(file):
            self._fetch_large(listing, file, stop)
        hf_hub_download(
            listing.name,
            file.path,
            repo_type=listing.kind,
            revision=listing.commit,
            cache_dir=self.cache,
            token=self._token,
            tqdm_class=None if file.size > _LARGE else _SilentBar,
        )

    def _is_resumed(self, file: RepoFile) -> bool:
        # Who asks for Xet's speed gets it: that goes past HTTP, and starts each file anew.
        fits = _LARGE <= file.size <= _XET_ONLY and file.digest
        return bool(fits) and not constants.HF_XET_HIGH_PERFORMANCE

    def _fetch_large(self, listing: Listing, file: RepoFile, stop: Event) -> None:
        """One file into the cache's blobs, where the client finds it."""
        partial = self._partial(listing, file)
        blob = partial.with_suffix("")
        lock = self.cache / ".locks" / blob.parents[1].name / f"{file.digest}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return
            self._continue(listing, file, partial, stop)
            if digest_of(partial, file.digest) != file.digest:
                partial.unlink()
                raise CheckpointError(
                    f"{file.path} of {listing.name} arrived damaged: its content is not what "
                    f"{self.title} lists. Run the same again, or set HF_ENDPOINT to another mirror."
                )
            partial.replace(blob)

    def _continue(self, listing: Listing, file: RepoFile, partial: Path, stop: Event) -> None:
        url = hf_hub_url(listing.name, file.path, repo_type=listing.kind, revision=listing.commit)
        headers = build_hf_headers(token=self._token)  # not sent on where the hub redirects
        with partial.open("ab") as content:
            if content.tell() > file.size:
                content.truncate(0)
            try:
                http_get(
                    url,
                    content,
                    resume_size=content.tell(),
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.path,
                    tqdm_class=_stoppable_bar(stop),
                )
            except OSError as error:
                if error.errno is None and not isinstance(error, HTTPError):
                    # The client's check of the size, which it has no class for.
                    size = content.tell()
                    content.truncate(0)
                    raise _wrong_size(self.title, listing, file, size) from None
                raise

    def _partial(self, listing: Listing, file: RepoFile) -> Path:
        storage = self.storage(listing.name, listing.kind)
        return storage / "blobs" / f"{file.digest}.incomplete"

    def storage(self, name: str, kind: Kind) -> Path:
        """As the client lays out its cache."""
        return self.cache / repo_folder_name(repo_id=name, repo_type=kind)

    @contextmanager
    def _sentences(
        self, name: str, kind: Kind, revision: str | None, fetching: bool = False
    ) -> Iterator[None]:
        """Turn the client's errors inside the block into a sentence each."""
        noun = NOUNS[kind]
        try:
            yield
        except HFValidationError:
            raise ConfigError(f"{name!r} is no id of the form ORG/NAME.") from None
        except GatedRepoError:
            raise ConfigError(
                f"{name} asks for its licence to be accepted: do so on its page, "
                f"{self.endpoint}/{name}, then log in with `hf auth login`."
            ) from None
        except RepositoryNotFoundError:
            raise self._missing(name, kind) from None
        except RevisionNotFoundError:
            raise ConfigError(
                f"{name} has no revision {revision!r} on {self.title}."
                f"{did_you_mean(str(revision), self._revisions(name, kind))}"
            ) from None
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            cause = error.__cause__ or error
            if isinstance(cause, OfflineModeIsEnabled):
                raise Offline(
                    f"There is no folder {name} here, the {noun} {name} is not in the cache "
                    f"{self.cache}, and HF_HUB_OFFLINE is set: unset it, or download where there "
                    "is a connection."
                ) from None
            if isinstance(cause, HfHubHTTPError):
                raise self._refusal(name, cause) from None
            raise self._unreachable(name, cause, fetching) from None
        except EntryNotFoundError as error:
            path = "a file"
            if isinstance(error, HfHubHTTPError):
                path = str(error.response.url).rpartition("/")[2]
            raise ConfigError(f"{name} on {self.title} lists {path}, but has it not.") from None
        except HfHubHTTPError as error:
            missing = error.response.status_code == 404  # as a mirror may say it
            raise (self._missing(name, kind) if missing else self._refusal(name, error)) from None
        except HTTPError as error:
            raise self._unreachable(name, error, fetching) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"The disk of {self.cache} is full: make room, or choose another folder for "
                "downloads (HF_HOME, --cache-dir), then run the same again; what has arrived is "
                "kept."
            ) from None

    def _missing(self, name: str, kind: Kind) -> ConfigError:
        other: Kind = "dataset" if kind == "model" else "model"
        with suppress(HTTPError, OSError):
            if self._api.repo_exists(name, repo_type=other):
                return ConfigError(
                    f"{name} on {self.title} is a {NOUNS[other]}, not a {NOUNS[kind]}."
                )
        return ConfigError(
            f"There is no {NOUNS[kind]} {name} on {self.title} (and no folder {name} here), or it "
            "is private: check the name, or log in with `hf auth login`."
        )

    def _refusal(self, name: str, error: HfHubHTTPError) -> ConfigError:
        status = error.response.status_code
        if status >= 500:
            return Unreachable(
                f"{self.title} ({self.endpoint}) is out of order: it answers {status}. Try again "
                "later, or set HF_ENDPOINT to a mirror; what has arrived is kept."
            )
        if status in (401, 403):
            return ConfigError(
                f"{self.title} refuses {name} ({status}): the token is wrong or may not read it; "
                "log in with `hf auth login`."
            )
        if status == 429:
            return ConfigError(
                f"{self.title} has been asked too often from here: wait some minutes, or log in "
                "with `hf auth login`."
            )
        reason = error.server_message or error.response.reason_phrase
        return ConfigError(f"{self.title} answers {status} for {name}: {reason}.")

    def _unreachable(self, name: str, error: BaseException, fetching: bool) -> Unreachable:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if fetching:
            return Unreachable(
                f"The connection to {self.title} ({self.endpoint}) broke off ({reason}): run the "
                "same again; what has arrived is kept."
            )
        return Unreachable(
            f"There is no folder {name} here, and {self.title} ({self.endpoint}) cannot be reached "
            f"({reason}): check the connection and the proxy, or set HF_ENDPOINT to a mirror."
        )

    def _revisions(self, name: str, kind: Kind) -> list[str]:
        with suppress(HTTPError, OSError):
            found = self._api.list_repo_refs(name, repo_type=kind)
            return [reference.name for reference in (*found.branches, *found.tags)]
        return []


def _wrong_size(title: str, listing: Listing, file: RepoFile, size: int) -> CheckpointError:
    return CheckpointError(
        f"{file.path} of {listing.name} arrived with {size:,} bytes where {title} lists "
        f"{file.size:,}: run the same again, or set HF_ENDPOINT to another mirror."
    )


class _SilentBar(tqdm):
    """For files so small that a bar would only flicker."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{**options, "disable": True})  # pyright: ignore[reportArgumentType]


def _stoppable_bar(stop: Event) -> type[tqdm]:
    """The client's bar, which ends the download that it watches once `stop` is set."""

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise KeyboardInterrupt
            return super().update(n)

    return Bar
