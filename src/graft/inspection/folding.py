"""Paths of modules in short: the indices of layers that are alike are put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["fold_paths", "folded", "ranges"]

_FIRST_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def fold_paths(paths: Iterable[str]) -> list[str]:
    """Paths with the indices of equal layers put together: `layers.{0-31}.self_attn.q_proj`."""
    return [text for text, _ in folded(paths)]


def folded(paths: Iterable[str]) -> list[tuple[str, int]]:
    """The same, each with the number of paths that it stands for."""
    # The text in front of the first index -> the index -> the texts behind it.
    found: dict[str, dict[int, list[str]]] = {}
    for path in paths:
        index = _FIRST_INDEX.search(path)
        behind = found.setdefault(path if index is None else path[: index.start(1)], {})
        if index is not None:
            behind.setdefault(int(index.group(1)), []).append(path[index.end(1) :])
    return [one for head, behind in found.items() for one in _with_indices(head, behind)]


def _with_indices(head: str, behind: Mapping[int, Sequence[str]]) -> list[tuple[str, int]]:
    if not behind:
        return [(head, 1)]
    indices: dict[tuple[str, int], list[int]] = {}
    for index, tails in behind.items():
        for tail in folded(tails):
            indices.setdefault(tail, []).append(index)
    return [
        (f"{head}{_braced(own)}{tail}", count * len(own)) for (tail, count), own in indices.items()
    ]


def _braced(indices: Sequence[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{{{ranges(indices)}}}"


def ranges(indices: Iterable[int]) -> str:
    """`0-3,5` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
