"""A model's modules as a tree in which layers that are alike are folded into one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from graft.inspection.folding import ranges

__all__ = ["Node", "Weight", "module_tree"]


@dataclass(frozen=True)
class Weight:
    """A parameter of a module's own.

    Attributes:
        name: `weight`, `bias`, ...
        shape: Its shape; of a quantised weight, the shape of what its codes stand for.
        dtype: Its dtype, such as `bfloat16`; of a quantised weight, that of its codes.
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


def module_tree(
    model: nn.Module,
    added: Mapping[str, int] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Node:
    """The tree of `model`.

    Args:
        model: Any module, on any device.
        added: By path, the numbers that an adapter adds at a module or a parameter. Layers that
            an adapter treats differently are not folded together.
        dtypes: By path of a parameter, its dtype in the files, where that is known.
    """
    return _node(model, "", "", added or {}, dtypes or {}, {})


def _node(
    module: nn.Module,
    path: str,
    name: str,
    added: Mapping[str, int],
    dtypes: Mapping[str, str],
    first: dict[int, str],
) -> Node:
    """The node of `module`; `first` is where each parameter was met first."""
    weights, numbers = [], 0
    new = added.get(path, 0)
    for own, parameter in module.named_parameters(recurse=False):
        full = f"{path}.{own}" if path else own
        owner = first.setdefault(id(parameter), full)
        shape = _shape(module, own, parameter)
        numbers += math.prod(shape) if owner == full else 0
        new += added.get(full, 0)
        dtype = dtypes.get(full) or str(parameter.dtype).removeprefix("torch.")
        tied_to = None if owner == full else owner
        weights.append(Weight(own, shape, dtype, tied_to))
    children = _folded(
        [
            _node(child, f"{path}.{below}" if path else below, below, added, dtypes, first)
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


def _shape(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, ...]:
    if isinstance(module, nn.Linear) and name == "weight":  # codes may be packed, two in a byte
        return (module.out_features, module.in_features)
    return tuple(parameter.shape)


def _folded(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """`nodes`, with those of a list that differ in nothing but their index made one."""
    alike: dict[Node | str, list[Node]] = {}
    for node in nodes:
        key = replace(node, name="") if node.name.isdecimal() else node.name
        alike.setdefault(key, []).append(node)
    return tuple(
        group[0]
        if len(group) == 1
        else replace(group[0], name=ranges([int(n.name) for n in group]), count=len(group))
        for group in alike.values()
    )
