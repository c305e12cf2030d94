"""Weighted combinations of adapters: one new adapter from several of the same method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from graft.adapt.adapter import Adapter, build_adapter
from graft.adapt.targets import shortest_names
from graft.errors import ConfigError
from graft.methods import METHODS, Combination, LayerAdapter
from graft.methods.affine import Affine

if TYPE_CHECKING:
    from graft.adapt.attached import AttachedAdapters

__all__ = ["combine"]


def combine(
    model: AttachedAdapters, names: Sequence[str], weights: Sequence[float], how: Combination
) -> tuple[Adapter, dict[str, float]]:
    """A new adapter for `model`, not attached yet, and its relative error at each layer."""
    adapters = [model.adapter(name) for name in names]
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(f"{len(adapters)} adapters and {len(weights)} weights; give as many.")
    for weight in weights:
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"weights must be finite numbers; {weight!r} is none.")
    kinds = {adapter.config.peft_type for adapter in adapters}
    if len(kinds) > 1:
        raise ConfigError(f"Adapters of {' and '.join(sorted(kinds))} cannot be combined into one.")
    method = METHODS[adapters[0].config.peft_type]
    if not issubclass(method, LayerAdapter):
        raise ConfigError(f"{adapters[0].config.peft_type} adapters cannot be combined by weights.")
    affines: dict[str, Affine] = {}
    errors: dict[str, float] = {}
    views = {path: view for adapter in adapters for path, view in adapter.views.items()}
    for path, view in views.items():
        parts = [
            (weight, adapter.layers[path])
            for weight, adapter in zip(weights, adapters, strict=True)
            if path in adapter.layers
        ]
        with torch.no_grad():
            affines[path], errors[path] = method.combined(view, parts, how)
    combined = _built(model, method, adapters, affines)
    for path, affine in affines.items():
        combined.layers[path].assign(combined.views[path], affine)
    _copy_saved(combined, adapters)
    return combined, errors


def _built(
    model: AttachedAdapters,
    method: type[LayerAdapter],
    adapters: Sequence[Adapter],
    affines: dict[str, Affine],
) -> Adapter:
    views = [view for adapter in adapters for view in adapter.views.values()]
    modules = dict.fromkeys(view.target_path for view in views if not view.is_bare)
    saved = dict.fromkeys(n for a in adapters for n in a.config.modules_to_save or [])
    config = method.combined_config([adapter.config for adapter in adapters], affines).changed(
        target_modules=shortest_names(modules, [p for p, _ in model.base_model.named_modules()]),
        layers_to_transform=None,
        layers_pattern=None,
        exclude_modules=None,
        modules_to_save=list(saved) or None,
    )
    if bare := [view.path for view in views if view.is_bare]:
        every = [path for path, _ in model.base_model.named_parameters()]
        config = config.changed(target_parameters=shortest_names(dict.fromkeys(bare), every))
    return build_adapter(model.base_model, config)


def _copy_saved(combined: Adapter, adapters: Sequence[Adapter]) -> None:
    for path, module in combined.saved.items():
        owners = [adapter.saved[path] for adapter in adapters if path in adapter.saved]
        if len(owners) > 1:
            raise ConfigError(
                f"Several of these adapters have their own {path}; a weighted mean of whole "
                "modules is not what any of them learned. Combine adapters without modules_to_save."
            )
        module.load_state_dict(owners[0].state_dict())
