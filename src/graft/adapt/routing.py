"""Which adapters act on which rows of the current forward."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from graft.errors import ConfigError, did_you_mean
from graft.methods import Affine

__all__ = ["BASE", "Router", "RowGroup", "each_once", "group_rows", "in_group_order"]

BASE = "__base__"  # the name for rows that no adapter acts on


@dataclass(frozen=True)
class RowGroup:
    """Contiguous rows that use the same adapters, in the order in which these act."""

    rows: slice
    adapters: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.rows.stop - self.rows.start


class Router:
    """The routing of the current forward, shared by every site of one model.

    Attributes:
        groups: The row groups.
        packed: Whether they are groups of tokens in a batch of one row.
        noise: By adapter a number from which its dropout follows, whatever other rows the batch
            has; an adapter without one draws from torch's generator.
        kept: What sites have made of their adapters and may use again, by site, while groups and
            adapters stay as they are; None where they may not.
    """

    def __init__(self) -> None:
        self.groups: tuple[RowGroup, ...] = ()
        self.packed = False
        self.noise: Mapping[str, int] = {}
        self.kept: dict[Any, Any] | None = None
        self._source: tuple[RowGroup, ...] = ()
        self._within: Callable[[], AbstractContextManager] = nullcontext

    @contextmanager
    def use(
        self,
        groups: Sequence[RowGroup],
        packed: bool = False,
        within: Callable[[], AbstractContextManager] = nullcontext,
        source: Sequence[RowGroup] = (),
    ) -> Iterator[None]:
        """Route by `groups` inside the block; restore what was.

        Args:
            groups: The row groups.
            packed: Whether they are groups of tokens in a batch of one row [1, S, ...].
            within: What else surrounds the forward, and its recomputation.
            source: The same groups in the packed tokens of the encoder, which a decoder's cross
                attention reads besides; they are told apart by how many tokens there are.
        """
        previous = self.groups, self.packed, self._within, self._source
        self.groups, self.packed, self._within = tuple(groups), packed, within
        self._source = tuple(source)
        try:
            with within():
                yield
        finally:
            self.groups, self.packed, self._within, self._source = previous

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let sites use again what they make of their adapters, inside the block."""
        previous, self.kept = self.kept, {}
        try:
            yield
        finally:
            self.kept = previous

    def seeded(self, affine: Affine, adapter: str, place: str) -> Affine:
        """`affine` of `adapter`, with the seed of its dropout at `place` where there is one."""
        if not affine.dropout or adapter not in self.noise:
            return affine
        return replace(affine, seed=self._seed(adapter, place))

    @contextmanager
    def drawing(self, adapter: str) -> Iterator[None]:
        """Let the modules of `adapter` draw from its own noise inside the block."""
        if adapter not in self.noise:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self._seed(adapter, "prompt"))
            yield

    def _seed(self, adapter: str, place: str) -> int:
        return (self.noise[adapter] * 1_000_003 + zlib.crc32(place.encode())) % 2**63

    def axis(self, tensor: Tensor) -> int:
        """The dimension of `tensor` along which groups stand."""
        several = self.packed and self.groups[-1].rows.stop > 1
        return 1 if several and tensor.ndim > 1 and tensor.shape[0] == 1 else 0

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """`context_fn` of `torch.utils.checkpoint`: recompute under the routing of the forward."""
        return nullcontext(), self.use(self.groups, self.packed, self._within, self._source)

    def sizes(self, rows: int) -> list[int]:
        """Rows per group in a tensor whose first dimension is `rows`.

        A layer may see a multiple of the batch (beams, rows flattened with tokens): groups scale.
        """
        groups = self.groups
        if self._source and rows == self._source[-1].rows.stop:
            groups = self._source
        factor, rest = divmod(rows, groups[-1].rows.stop)
        if rest:
            raise ConfigError(
                f"A layer got {rows} rows where the batch has {groups[-1].rows.stop}; rows "
                "with different adapters cannot be told apart there. Use one adapter per batch."
            )
        return [group.size * factor for group in groups]


def group_rows(
    adapter_names: Sequence[str | Sequence[str]], known: Sequence[str]
) -> tuple[list[int], list[RowGroup]]:
    """Sort rows so that those with the same adapters stand together.

    Args:
        adapter_names: Per row a name, several names, or `"__base__"`.
        known: The names that exist.

    Returns:
        The order (old index of each new row) and the groups over the sorted rows.
    """
    keys = [_names_of_row(entry, known) for entry in adapter_names]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(keys)), key=lambda i: (first[keys[i]], i))
    groups, start = [], 0
    for key, members in itertools.groupby(order, key=lambda i: keys[i]):
        stop = start + len(list(members))
        groups.append(RowGroup(slice(start, stop), key))
        start = stop
    return order, groups


def _names_of_row(entry: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) or not isinstance(entry, Sequence) else tuple(entry)
    names = tuple(name for name in names if name != BASE)
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no adapter {name!r}.{did_you_mean(name, [*known, BASE])}")
    return each_once(names)


def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` as they are; a ConfigError where one is there twice."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"{name!r} is named twice in {list(names)}; an adapter acts once.")
    return names


def in_group_order(value: Any, order: Sequence[int], rows: int) -> Any:
    """`value` with its rows in `order`: tensors with `rows` rows, caches, and nests of them.

    A cache is changed in place, as it is wherever it is used.
    """
    if isinstance(value, Tensor):
        if value.ndim and value.shape[0] == rows:
            return value[torch.tensor(order, device=value.device)]
        return value
    if isinstance(value, Cache):
        value.reorder_cache(torch.LongTensor(order))
    elif isinstance(value, Mapping):
        return type(value)(**{k: in_group_order(v, order, rows) for k, v in value.items()})
    elif isinstance(value, tuple | list):
        return type(value)(in_group_order(item, order, rows) for item in value)
    return value
