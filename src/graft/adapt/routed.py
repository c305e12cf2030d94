"""Modules that are routed as a whole: their `forward` is called once per row group.

For what hooks on inputs and outputs cannot do: a module that an adapter replaces by its own copy
(`SavedModule`), and bare parameters inside a module (`ParameterSite`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.layers import LayerView
from graft.adapt.parameters import ParameterView
from graft.adapt.routing import Router
from graft.errors import ConfigError
from graft.methods import Affine, LayerAdapter
from graft.methods.affine import merged
from graft.methods.base import adapter_dtype

__all__ = ["ParameterSite", "SavedModule", "trainable_copy"]


class Routed(ABC):
    """Takes over a module's `forward` until `detach`."""

    def __init__(self, module: nn.Module, path: str, router: Router) -> None:
        self.module: Any = module
        self.path = path
        self.router = router
        self._original: Callable[..., Any] = module.forward
        self._was_replaced = "forward" in module.__dict__
        module.forward = self._forward

    def detach(self) -> None:
        """Give the module its own `forward` back.

        Where something else has taken it over since (a second model on the same base), that stays;
        what it calls here passes through, as no adapter is left.
        """
        if self.module.__dict__.get("forward") != self._forward:
            return
        del self.module.__dict__["forward"]
        if self._was_replaced:
            self.module.forward = self._original

    @abstractmethod
    def call(self, adapters: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """The module's forward for rows on which `adapters` act."""

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        groups = self.router.groups
        if len(groups) < 2:
            return self.call(groups[0].adapters if groups else (), *args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()))
        axis = self.router.axis(first)
        rows = first.shape[axis]
        sizes = self.router.sizes(rows)
        positional = [_split(value, rows, sizes, axis) for value in args]
        named = {key: _split(value, rows, sizes, axis) for key, value in kwargs.items()}
        outputs = [
            self.call(
                group.adapters,
                *(pieces[index] for pieces in positional),
                **{key: pieces[index] for key, pieces in named.items()},
            )
            for index, group in enumerate(groups)
        ]
        return _joined(outputs, axis)


def _split(value: Any, rows: int, sizes: list[int], axis: int) -> Sequence[Any]:
    if isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == rows:
        return value.split(sizes, axis)
    return [value] * len(sizes)


def _joined(outputs: list[Any], axis: int) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs, axis)
    if isinstance(first, tuple):
        return tuple(_joined(list(column), axis) for column in zip(*outputs, strict=True))
    return first


class SavedModule(Routed):
    """A module trained and saved whole beside an adapter (`modules_to_save`), such as a head.

    Each adapter has its own copy; of several active adapters the last one's copy acts.

    Attributes:
        copies: One copy per adapter.
    """

    def __init__(self, module: nn.Module, path: str, router: Router) -> None:
        super().__init__(module, path, router)
        self.copies: dict[str, nn.Module] = {}

    def call(self, adapters: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        names = [name for name in adapters if name in self.copies]
        if not names:
            return self._original(*args, **kwargs)
        chosen = self.copies[names[-1]]
        own = next(chosen.parameters()).dtype
        y = chosen(*(_cast(value, own) for value in args), **kwargs)
        return _cast(y, next(self.module.parameters()).dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def trainable_copy(module: nn.Module) -> nn.Module:
    """A copy of a base model's module that trains, in fp32 at least, and is not routed."""
    routed = module.__dict__.pop("forward", None)
    try:
        copied = copy.deepcopy(module)
    finally:
        if routed is not None:
            module.forward = routed
    parameter = next(copied.parameters(), None)
    if parameter is None:
        raise ConfigError(
            f"modules_to_save: a {type(module).__name__} has nothing to train; leave it out."
        )
    return copied.to(adapter_dtype(parameter.dtype)).requires_grad_(True)


class ParameterSite(Routed):
    """The adapted parameters of one module whose forward uses them in its own way.

    Such are experts kept as one 3-D parameter and `nn.MultiheadAttention`. The adapted weight
    `W + scaling * B A` is made for the call and stands in for the parameter; the module itself
    runs unchanged.

    Attributes:
        views: Views of the parameters by path.
        adapters: For each adapter its layer adapters by path of the view.
        merged: Names of the adapters folded into the parameters, in that order.
    """

    def __init__(self, view: ParameterView, router: Router) -> None:
        super().__init__(view.module, view.site_path, router)
        self.views: dict[str, ParameterView] = {}
        self.adapters: dict[str, dict[str, LayerAdapter]] = {}
        self.merged: list[str] = []

    def add(self, name: str, view: LayerView, adapter: LayerAdapter) -> None:
        """Put an adapter at one of the module's parameters."""
        assert isinstance(view, ParameterView)
        self.views.setdefault(view.path, view)
        self.adapters.setdefault(name, {})[view.path] = adapter

    def merge(self, name: str) -> None:
        """Fold the adapter `name` into the parameters, rounding once for all that are merged."""
        names = [*self.merged, name]
        with torch.no_grad():
            for path, affines in self._affines(names).items():
                view = self.views[path]
                view.write(*merged(view, affines))
        self.merged = names  # once it is in

    def unmerge(self) -> None:
        """Restore the module's own parameters exactly."""
        for view in self.views.values():
            view.restore()
        self.merged.clear()

    def kept_parameters(self) -> list[nn.Parameter]:
        """The module's own parameters, while merged ones stand in for them."""
        return [kept for view in self.views.values() for kept in view.kept_parameters()]

    def adds_bias(self, name: str) -> bool:
        """Whether the adapter `name` gives a layer a bias that it has no place for."""
        return False

    def call(self, adapters: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        active = [name for name in adapters if name in self.adapters and name not in self.merged]
        if (
            active
            and len(self.router.groups) > 1
            and getattr(self.module, "batch_first", None) is False
        ):
            raise ConfigError(
                f"{self.path} has its rows in the second dimension, so rows with different "
                "adapters cannot be told apart there; make it with batch_first=True."
            )
        with ExitStack() as stack:
            for path, affines in self._affines([*self.merged, *active] if active else []).items():
                view = self.views[path]
                weight, _ = merged(view, [affine.with_input_dropped() for affine in affines])
                stack.enter_context(_standing_in(view, weight.to(view.dtype)))
            return self._original(*args, **kwargs)

    def _affines(self, names: Sequence[str]) -> dict[str, list[Affine]]:
        out: dict[str, list[Affine]] = {}
        for name in names:
            for path, adapter in self.adapters[name].items():
                affine = adapter.affine(self.views[path])
                out.setdefault(path, []).append(self.router.seeded(affine, name, path))
        return out


@contextmanager
def _standing_in(view: ParameterView, matrix: Tensor) -> Iterator[None]:
    """Let the module see `matrix` in the place of its parameter; the parameter stays registered."""
    owner, name = view.owner, view.name
    owner.__dict__[name] = view.as_stored(matrix)  # found before nn.Module looks for parameters
    try:
        yield
    finally:
        del owner.__dict__[name]
