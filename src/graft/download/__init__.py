"""Files that lie on a hub -> a folder here.

`address` says which repository is meant, `selection` which of its files, `plan` what is missing and
whether the disk has room; `hugging_face` and `modelscope` speak to the hubs through their own
clients and turn what these raise into a sentence each. What the files hold is left to others.
"""

from __future__ import annotations

from graft.download.adapters import CONFIG_NAME, LABELS_NAME, adapter_folder
from graft.download.address import HubAddress, default_hub, hub_address, local_folder
from graft.download.integrity import LFS_POINTER, read_object, refuse_pointer, require_whole
from graft.download.listing import Listing, RepoFile, Unreachable
from graft.download.plan import Plan, make_plan, plan_dataset
from graft.download.selection import (
    Part,
    default_files,
    is_adapter,
    lack_of_safetensors,
    matching,
    model_files,
    require_matches,
    size_text,
    unsafe_weights,
)

__all__ = [
    "CONFIG_NAME",
    "LABELS_NAME",
    "LFS_POINTER",
    "HubAddress",
    "Listing",
    "Part",
    "Plan",
    "RepoFile",
    "Unreachable",
    "adapter_folder",
    "default_files",
    "default_hub",
    "hub_address",
    "is_adapter",
    "lack_of_safetensors",
    "local_folder",
    "make_plan",
    "matching",
    "model_files",
    "plan_dataset",
    "read_object",
    "refuse_pointer",
    "require_matches",
    "require_whole",
    "size_text",
    "unsafe_weights",
]
