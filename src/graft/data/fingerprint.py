"""What the tokens of a source depend on, as one key: equal keys, equal tokens.

Whatever can change a token is in the key, and too much rather than too little: a key that differs
without need costs time, one that agrees without right would train on the wrong tokens. Storing is
left to `cache`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.sources import Source
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["code_sha256", "file_sha256", "tokens_key"]

_LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
# What of `data:` says which rows there are, and is in the source already, or what becomes of their
# tokens afterwards. Fields that are new here are in the key until somebody lists them.
_NOT_TOKENS = {
    "train",
    "eval",
    "eval_fraction",
    "dataset_dir",
    "use_cache",
    "format",
    "columns",
    "max_rows",
}


def tokens_key(
    source: Source,
    digests: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task_type: TaskType,
) -> str | None:
    """The name of the tokens of `source`, 64 hexadecimal digits.

    Args:
        source: Where its files lie, what it is called and its weight do not matter.
        digests: SHA-256 of each of its files, in order.
        tokenizer: Its state decides, not where it came from.
        config: The `data:` section.
        task_type: What the rows are for.

    Returns:
        The key, or None for a tokenizer written in Python, whose state cannot be told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    told = {
        "files": [[p.suffix.lower(), d] for p, d in zip(source.files, digests, strict=True)],
        "source": [
            source.format,
            sorted(source.columns.items()),
            sorted(source.tags.items()),
            source.max_rows,
        ],
        "settings": config.model_dump(mode="json", exclude=_NOT_TOKENS),
        "task": str(task_type),
        "tokenizer": _tokenizer(tokenizer, backend.to_str()),
        "code": code_sha256(Path(__file__).parent),  # a newer graft serves no older one's tokens
        "versions": {name: version(name) for name in _LIBRARIES},
        "day": date.today().isoformat() if _tells_the_day(tokenizer) else None,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, which is read in pieces.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _tokenizer(tokenizer: PreTrainedTokenizerBase, backend: str) -> dict[str, Any]:
    state = json.loads(backend)
    # Left over from the last call; every call sets them anew.
    del state["truncation"], state["padding"]
    kind = type(tokenizer)
    return {
        "backend": hashlib.sha256(json.dumps(state).encode()).hexdigest(),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special_tokens": {name: str(token) for name, token in _special(tokenizer)},
        "chat_template": tokenizer.chat_template,
        "model_max_length": tokenizer.model_max_length,
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": tokenizer.split_special_tokens,
        "model_input_names": list(tokenizer.model_input_names),
    }


def _special(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, Any]]:
    return sorted(tokenizer.special_tokens_map.items())


def _tells_the_day(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template may write today's date into a prompt, as Llama 3's does."""
    return "strftime_now" in json.dumps(tokenizer.chat_template)


@cache
def code_sha256(folder: Path) -> str:
    """SHA-256 of all Python files in `folder`, their names with them."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
