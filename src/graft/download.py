"""Files that lie on a hub -> a folder here, and the clients' failures -> a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from graft.errors import CheckpointError, ConfigError

__all__ = [
    "CONFIG_NAME",
    "LABELS_NAME",
    "LFS_POINTER",
    "adapter_folder",
    "dataset_folder",
    "first_line",
    "hugging_face_errors",
    "modelscope_snapshot",
    "refuse_pointer",
]

CONFIG_NAME = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"  # how such a file begins
LABELS_NAME = "labels.json"  # beside an adapter for SEQ_CLS: the names of its classes, in order
_ADAPTER_FILES = (
    CONFIG_NAME,
    "adapter_model.*",
    "graft_state.safetensors",
    "tokenizer*",
    "*.jinja",
    LABELS_NAME,
    "run.yaml",
    "summary.json",
)
_DATA_FILES = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt", "README.md")


def adapter_folder(
    source: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder here that holds the adapter `source`, downloaded where it lies on a hub.

    Args:
        source: A folder, `ORG/NAME` or `hf:ORG/NAME` on Hugging Face, `ms:ORG/NAME` on ModelScope.
        revision: Branch, tag or commit on the hub.
        subfolder: Folder of the adapter in `source`.
        cache_dir: Where downloads are kept; None for the hub's own cache.
        token: For private repositories on Hugging Face.

    Raises:
        ConfigError: No such folder or id.
        CheckpointError: A folder that holds no adapter.
    """
    kind, _, name = str(source).partition(":")
    folder = Path(source).expanduser()
    if kind == "ms":
        folder = Path(modelscope_snapshot(name, revision))
    elif not folder.is_dir():
        name = str(source).removeprefix("hf:")
        if folder.is_absolute() or str(source).startswith((".", "~")) or name.count("/") != 1:
            raise CheckpointError(f"There is no adapter folder {source}.")
        inside = f"{subfolder}/" if subfolder else ""
        with hugging_face_errors(name, revision, "adapter"):
            snapshot = snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=[f"{inside}{pattern}" for pattern in _ADAPTER_FILES],
            )
        folder = Path(snapshot)
    folder = folder / (subfolder or "")
    if not (folder / CONFIG_NAME).is_file():
        inside = [entry.parent.name for entry in folder.glob(f"*/{CONFIG_NAME}")]
        hint = f" There are adapters in it: {', '.join(sorted(inside))}." if inside else ""
        raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG_NAME}.{hint}")
    return folder


def dataset_folder(
    source: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """The folder here that holds the files of the data set `source`, downloaded from its hub.

    Args:
        source: `hf:ORG/NAME` on Hugging Face or `ms:ORG/NAME` on ModelScope.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where downloads are kept; None for the hub's own cache.
        patterns: Files wanted, as globs; None for all that hold rows, and README.md.

    Raises:
        ConfigError: No such data set.
    """
    kind, _, name = source.partition(":")
    wanted = list(patterns or _DATA_FILES)
    if kind == "ms":
        return Path(modelscope_snapshot(name, revision))
    with hugging_face_errors(name, revision, "data set"):
        return Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=wanted,
            )
        )


@contextmanager
def hugging_face_errors(name: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn the client's errors inside the block into a sentence each."""
    try:
        yield
    except HFValidationError:
        raise ConfigError(
            f"{name!r} is neither a folder here nor an id of the form ORG/NAME."
        ) from None
    except GatedRepoError:
        raise ConfigError(
            f"{name} asks for its licence to be accepted: do so on its page, then log in with "
            "`hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"There is no folder {name} here and no model {name} on Hugging Face (or it is "
            "private: log in with `hf auth login`)."
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(f"{name} has no revision {revision!r} on Hugging Face.") from None
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"There is no folder {name} here, the {what} is not in the local cache, and Hugging "
            "Face cannot be reached. Check the connection, or set HF_ENDPOINT to a mirror."
        ) from None
    except EntryNotFoundError:
        raise CheckpointError(f"{name} on Hugging Face is no {what}: no config.json.") from None
    except HfHubHTTPError as error:
        raise ConfigError(f"Hugging Face does not give {name}: {first_line(error)}") from None


def modelscope_snapshot(name: str, revision: str | None) -> str:
    """The folder of the repository `name`, downloaded by ModelScope's own client."""
    try:
        from modelscope import snapshot_download as download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"ms:{name} needs the package modelscope: pip install 'graft-peft[modelscope]'."
        ) from None
    try:
        return str(download(name, revision=revision))
    except Exception as error:  # the package promises no classes of errors
        raise ConfigError(f"ModelScope does not give {name}: {first_line(error)}") from None


def refuse_pointer(path: Path) -> None:
    """Raise a CheckpointError where Git LFS has left a pointer in place of weights."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there."
            )


def first_line(error: Exception) -> str:
    """The error's class and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
