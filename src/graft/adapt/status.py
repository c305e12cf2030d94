"""What is attached where, and what it does: PEFT's status of layers and model, for every method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from graft.adapt.attached import AttachedAdapters

__all__ = ["LayerStatus", "ModelStatus", "get_layer_status", "get_model_status"]


@dataclass(frozen=True)
class LayerStatus:
    """One place where adapters act.

    Attributes:
        name: Path of the module in the base model; `prompt_encoder` for virtual tokens.
        module_type: Its class.
        enabled: Whether adapters act at all (see `disable_adapter_layers`).
        active_adapters: Those that act here on rows which say nothing else.
        merged_adapters: Those folded into the weight here.
        requires_grad: Whether the parameters learn, by adapter.
        available_adapters: Those that are here.
        devices: Where their parameters are, by adapter.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool]
    available_adapters: list[str]
    devices: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelStatus:
    """The model as a whole; attributes as in `LayerStatus` and PEFT's `TunerModelStatus`."""

    base_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def get_layer_status(model: AttachedAdapters) -> list[LayerStatus]:
    """The status of every place where an adapter acts, virtual tokens and heads included."""
    places: dict[str, dict[str, nn.Module]] = {}
    for name in model.adapters:
        adapter = model.adapter(name)
        if adapter.virtual_tokens is not None:
            places.setdefault("prompt_encoder", {})[name] = adapter.virtual_tokens
        for path, module in [*adapter.layers.items(), *adapter.saved.items()]:
            places.setdefault(path, {})[name] = module
    return [_layer(model, path, modules) for path, modules in places.items()]


def _layer(model: AttachedAdapters, path: str, modules: dict[str, nn.Module]) -> LayerStatus:
    site = model.sites.get(path)
    base = dict(model.base_model.named_modules()).get(path)
    return LayerStatus(
        name=path,
        module_type=type(next(iter(modules.values())) if base is None else base).__name__,
        enabled=model.enabled,
        active_adapters=[name for name in model.active_adapters if name in modules],
        merged_adapters=[] if site is None else list(site.merged),
        requires_grad={n: any(p.requires_grad for p in m.parameters()) for n, m in modules.items()},
        available_adapters=list(modules),
        devices={name: _devices(module) for name, module in modules.items()},
    )


def _devices(module: nn.Module) -> list[str]:
    return sorted({parameter.device.type for parameter in module.parameters()})


def get_model_status(model: AttachedAdapters) -> ModelStatus:
    """The status of the model as a whole."""
    trainable, total = model.get_nb_trainable_parameters()
    configs = model.peft_config
    return ModelStatus(
        base_model_type=type(model.base_model).__name__,
        peft_types={name: str(config.peft_type) for name, config in configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(model.sites),
        enabled=model.enabled,
        active_adapters=model.active_adapters,
        merged_adapters=model.merged_adapters,
        requires_grad={
            name: any(p.requires_grad for p in model.adapter(name).parameters()) for name in configs
        },
        available_adapters=list(configs),
        devices={name: _devices(model.adapter(name)) for name in configs},
    )
