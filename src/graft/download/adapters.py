"""An adapter's name -> the folder that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from graft.download.address import hub_address
from graft.download.plan import make_plan
from graft.download.selection import adapter_files
from graft.errors import CheckpointError

__all__ = ["CONFIG_NAME", "LABELS_NAME", "adapter_folder"]

CONFIG_NAME = "adapter_config.json"
LABELS_NAME = "labels.json"  # beside a classifier: the names of its classes, in order


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
        ConfigError: No such id, or a hub that does not give it.
        CheckpointError: A folder that holds no adapter.
    """
    text, folder = str(source), Path(source).expanduser()
    if folder.is_dir():
        folder = folder / (subfolder or "")
        if not (folder / CONFIG_NAME).is_file():
            raise _no_adapter(
                str(folder), [path.parent for path in folder.glob(f"*/{CONFIG_NAME}")]
            )
        return folder
    is_path = text.startswith((".", "/", "~")) or (":" not in text and text.count("/") != 1)
    if is_path:
        raise CheckpointError(f"There is no adapter folder {source}.")
    address = hub_address(text)
    inside = f"{subfolder}/" if subfolder else ""
    plan = make_plan(
        address,
        lambda listing: adapter_files(listing, subfolder),
        revision=revision,
        cache_dir=cache_dir,
        token=token,
    )
    configs = [PurePosixPath(f.path) for f in plan.listing.files if f.path.endswith(CONFIG_NAME)]
    if PurePosixPath(f"{inside}{CONFIG_NAME}") not in configs:
        raise _no_adapter(f"{address}{'/' if inside else ''}{inside}", [c.parent for c in configs])
    return plan.fetch() / inside


def _no_adapter(where: str, folders: Sequence[PurePath]) -> CheckpointError:
    names = ", ".join(sorted(folder.name for folder in folders))
    hint = f" There are adapters in it: {names}." if names else ""
    return CheckpointError(f"{where} holds no adapter: it has no {CONFIG_NAME}.{hint}")
