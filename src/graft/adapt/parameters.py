"""Bare parameters as layers: experts kept as one 3-D parameter, and attention's projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graft.adapt.layers import LayerView

__all__ = ["ParameterView"]

_BARE = {2: "parameter", 3: "experts"}


class ParameterView(LayerView):
    """A bare parameter of a module: 3-D ([E, O, I], one matrix per expert) or a matrix [O, I].

    Args:
        module: The module that is called.
        path: Its dotted path.
        parameter: Dotted name of the parameter in it.
    """

    def __init__(self, module: nn.Module, path: str, parameter: str) -> None:
        super().__init__(module, f"{path}.{parameter}")
        self._site_path = path
        inner, _, self.name = parameter.rpartition(".")
        self._owner = module.get_submodule(inner)
        self.is_attention = isinstance(module, nn.MultiheadAttention)
        self.is_bare = not self.is_attention
        self.kind = "attention" if self.is_attention else _BARE[self._stored.ndim]
        # Some experts store [E, I, O] and say so.
        self._transposed = self.kind == "experts" and getattr(module, "is_transposed", False)
        self.depth = 1 if self.is_attention and inner else 0  # of `base_layer`s in PEFT's keys

    @property
    def owner(self) -> Any:
        return self._owner

    @property
    def site_path(self) -> str:
        return self._site_path

    @property
    def target_path(self) -> str:
        return self._site_path if self.is_attention else self.path

    @property
    def disk_path(self) -> str:
        # PEFT nests one wrapper a parameter; a projection inside keeps its own name there.
        inner = self.path.removeprefix(f"{self._site_path}.").rpartition(".")[0]
        return ".".join([self._site_path, *["base_layer"] * self.depth, *filter(None, [inner])])

    @property
    def _experts(self) -> int:
        return self.weight.shape[0] if self.kind == "experts" else 1

    @property
    def in_features(self) -> int:
        return self.weight.shape[-1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[-2]

    @property
    def bias(self) -> Tensor | None:
        return None  # whatever the module adds besides, it is not this parameter's

    @property
    def _own_bias(self) -> nn.Parameter | None:
        return None

    def low_rank_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        total = rank * self._experts
        return (total, self.in_features), (self.out_features, total)

    def as_matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """[E*R, I], expert by expert, and [O, R*E], rank by rank -> [E, R, I], [E, O, R]."""
        if self.kind != "experts":
            return a, b
        count = self._experts
        rows = b.view(self.out_features, -1, count)
        return a.view(count, -1, self.in_features), rows.permute(2, 0, 1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        return matrix.mT if self._transposed else matrix

    def _as_matrix(self, stored: Tensor) -> Tensor:
        return stored.mT if self._transposed else stored
