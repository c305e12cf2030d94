"""A model's modules as a tree in which layers that are alike are folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

__all__ = ["Node", "Weight", "fold_paths", "module_tree"]

_FIRST_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Weight:
    """A parameter of a module's own.

    Attributes:
        name: `weight`, `bias`, ...
        shape: Its shape.
        dtype: Its dtype, such as `bfloat16`.
        tied_to: Path of the parameter that it is the same as, if that comes before it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None


@dataclass(frozen=True)
class Node:
    """A module, or several modules of one list that are alike in everything.

    Attributes:
        name: Its name in its parent; `0-31` where several are folded.
        kind: Name of its class.
        count: Modules that this node stands for.
        weights: The parameters of its own.
        parameters: Numbers in one such module and all below it; what is tied counts where it is
            first.
        added: Numbers that an adapter adds in one such module, and below it, to be trained.
        children: The modules in it.
    """

    name: str
    kind: str
    count: int = 1
    weights: tuple[Weight, ...] = ()
    parameters: int = 0
    added: int = 0
    children: tuple[Node, ...] = ()


def module_tree(model: nn.Module, added: Mapping[str, int] | None = None) -> Node:
    """The tree of `model`.

    Args:
        model: Any module, on any device.
        added: By path, the numbers that an adapter adds at a module or a parameter. Layers that
            an adapter treats differently are not folded together.
    """
    return _node(model, "", "", added or {}, {})


def _node(
    module: nn.Module, path: str, name: str, added: Mapping[str, int], first: dict[int, str]
) -> Node:
    """The node of `module`; `first` is where each parameter was met first."""
    weights, numbers = [], 0
    new = added.get(path, 0)
    for own, parameter in module.named_parameters(recurse=False):
        full = f"{path}.{own}" if path else own
        owner = first.setdefault(id(parameter), full)
        numbers += parameter.numel() if owner == full else 0
        new += added.get(full, 0)
        dtype = str(parameter.dtype).removeprefix("torch.")
        tied_to = None if owner == full else owner
        weights.append(Weight(own, tuple(parameter.shape), dtype, tied_to))
    children = _folded(
        [
            _node(child, f"{path}.{below}" if path else below, below, added, first)
            for below, child in module.named_children()
        ]
    )
    return Node(
        name=name,
        kind=type(module).__name__,
        weights=tuple(weights),
        parameters=numbers + sum(child.count * child.parameters for child in children),
        added=new + sum(child.count * child.added for child in children),
        children=children,
    )


def _folded(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """`nodes`, with those of a list that differ in nothing but their index made one."""
    alike: dict[Node | str, list[Node]] = {}
    for node in nodes:
        key = replace(node, name="") if node.name.isdecimal() else node.name
        alike.setdefault(key, []).append(node)
    return tuple(
        group[0]
        if len(group) == 1
        else replace(group[0], name=_ranges([int(n.name) for n in group]), count=len(group))
        for group in alike.values()
    )


def fold_paths(paths: Iterable[str]) -> list[str]:
    """Paths with the indices of equal layers put together: `layers.{0-31}.self_attn.q_proj`."""
    # The text in front of the first index -> the index -> the texts behind it.
    found: dict[str, dict[int, list[str]]] = {}
    for path in paths:
        index = _FIRST_INDEX.search(path)
        behind = found.setdefault(path if index is None else path[: index.start(1)], {})
        if index is not None:
            behind.setdefault(int(index.group(1)), []).append(path[index.end(1) :])
    return [one for head, behind in found.items() for one in _with_indices(head, behind)]


def _with_indices(head: str, behind: Mapping[int, Sequence[str]]) -> list[str]:
    if not behind:
        return [head]
    indices: dict[str, list[int]] = {}
    for index, tails in behind.items():
        for tail in fold_paths(tails):
            indices.setdefault(tail, []).append(index)
    return [f"{head}{_braced(own)}{tail}" for tail, own in indices.items()]


def _braced(indices: Sequence[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{{{_ranges(indices)}}}"


def _ranges(indices: Iterable[int]) -> str:
    """`0-3,5` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
