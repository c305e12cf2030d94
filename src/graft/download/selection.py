"""Which files of a repository are wanted: of a model, of an adapter, of a data set.

A model's are what transformers loads, at the top of the repository: the config, the tokenizer and
the safetensors. The same weights in other formats, and a second copy of them under another name
(`consolidated.safetensors`), stay on the hub, and so does code.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Literal

from graft.download.address import HubAddress
from graft.download.listing import Listing, RepoFile
from graft.errors import ConfigError, did_you_mean

__all__ = [
    "DATA_FILES",
    "Part",
    "adapter_files",
    "default_files",
    "is_adapter",
    "lack_of_safetensors",
    "matching",
    "model_files",
    "require_matches",
    "size_text",
    "unsafe_weights",
]

Part = Literal["config", "tokenizer", "model"]

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.*",
    "vocab-*",
    "merges.txt",
    "*.model",  # of sentencepiece
    "*.spm",
    "*.tiktoken",
    "bpe.codes",
)
_SHARDS = ("model-*-of-*.safetensors", "model.safetensors.index.json")
_ABOUT = ("README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.*",
    "graft_state.safetensors",
    "labels.json",
    "run.yaml",
    "summary.json",
    *TOKENIZER_FILES,
)
_OTHER_WEIGHTS = (
    "*.gguf",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.pt",
    "*.pth",
    "*.bin",
    "*.safetensors",
)
DATA_FILES = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt", "README.md")


def model_files(listing: Listing, part: Part = "model") -> list[RepoFile]:
    """The files of a model that are needed for `part` of it.

    Args:
        listing: Of the repository.
        part: `config` is config.json alone, `tokenizer` the tokenizer's files with it, `model` all
            that is needed to load the model.
    """
    if part == "config":
        return _at_top(listing, ("config.json",))
    weights = _weights(listing) if part == "model" else ()
    return _at_top(listing, (*CONFIG_FILES, *TOKENIZER_FILES, *weights))


def adapter_files(listing: Listing, subfolder: str | None = None) -> list[RepoFile]:
    """The files of the adapter in `subfolder`, or at the top."""
    inside = f"{subfolder}/" if subfolder else ""
    return matching(listing, [f"{inside}{pattern}" for pattern in ADAPTER_FILES])


def default_files(listing: Listing) -> list[RepoFile]:
    """What is fetched of a model or an adapter unless more is asked for."""
    if is_adapter(listing):
        return _at_top(listing, (*ADAPTER_FILES, *_ABOUT))
    return _at_top(listing, (*CONFIG_FILES, *TOKENIZER_FILES, *_weights(listing), *_ABOUT))


def is_adapter(listing: Listing) -> bool:
    """Whether the repository holds an adapter, and no model."""
    paths = {file.path for file in listing.files}
    return "adapter_config.json" in paths and "config.json" not in paths


def matching(listing: Listing, patterns: Sequence[str]) -> list[RepoFile]:
    """The files whose path is like one of `patterns`; `*` stands for folders too."""
    return [f for f in listing.files if any(fnmatch(f.path, pattern) for pattern in patterns)]


def require_matches(listing: Listing, patterns: Sequence[str]) -> None:
    """Raise a ConfigError for a pattern that no file is like."""
    for pattern in patterns:
        if not matching(listing, (pattern,)):
            paths = [file.path for file in listing.files]
            raise ConfigError(
                f"No file of {listing.name} is like {pattern!r}.{did_you_mean(pattern, paths)}"
            )


def lack_of_safetensors(listing: Listing, address: HubAddress) -> str | None:
    """What a repository has instead of safetensors, and how to get it; None where it has them."""
    if _at_top(listing, _weights(listing)):
        return None
    unsafe = unsafe_weights(listing)
    if unsafe:
        size = size_text(sum(file.size for file in unsafe))
        return (
            f"{address} has no safetensors, only {unsafe[0].path} ({size}): fetch it with "
            f"`graft download {address} --include 'pytorch_model*'`; graft reads it without "
            "unpickling objects."
        )
    others = matching(listing, _OTHER_WEIGHTS)
    seen = f", only {others[0].path}" if others else ""
    return f"{address} has no weights that graft loads: expected model.safetensors{seen}."


def size_text(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count} bytes"


def unsafe_weights(listing: Listing) -> list[RepoFile]:
    """Weights that transformers can load, but are no safetensors."""
    return _at_top(listing, ("pytorch_model*.bin", "pytorch_model.bin.index.json"))


def _weights(listing: Listing) -> tuple[str, ...]:
    """As transformers chooses: one file where there is one, else the shards of the index."""
    one = "model.safetensors"
    return (one,) if any(file.path == one for file in listing.files) else _SHARDS


def _at_top(listing: Listing, patterns: Sequence[str]) -> list[RepoFile]:
    """Those in no folder; what is in one is another model, or another form of this one."""
    top = ("", "additional_chat_templates")
    return [f for f in matching(listing, patterns) if f.path.rpartition("/")[0] in top]
