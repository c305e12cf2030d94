"""A base model and an adapter config -> what the config hits and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from graft.adapt.adapter import Adapter, adapter_tensors, build_adapter
from graft.adapt.structure import adaptable_layers
from graft.config import PeftConfig, TaskType, as_enum
from graft.hub import load_config, load_skeleton, task_of
from graft.inspection.tree import Node, module_tree
from graft.methods import METHODS, LayerAdapter
from graft.methods.base import matches_suffix
from graft.methods.targeting import TargetedConfig

__all__ = ["AdapterReport", "Inspection", "PatternHits", "inspect"]


@dataclass(frozen=True)
class PatternHits:
    """A target pattern and the layers that it hits.

    Attributes:
        pattern: A name, or a regular expression.
        layers: Paths of the target layers that it matches.
    """

    pattern: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter would do to a base model, and what it would cost.

    Attributes:
        method: The method, as in run files.
        patterns: The target patterns, chosen from the structure where the config names none.
        not_hit: Paths of the layers that the method could adapt and no pattern hits.
        saved_modules: Paths of the modules that are trained whole, such as a new head.
        virtual_tokens: Virtual tokens in each row.
        trainable_parameters: Numbers that are trained.
        bytes_on_disk: Bytes of the tensors that are saved.
    """

    method: str
    patterns: tuple[PatternHits, ...]
    not_hit: tuple[str, ...]
    saved_modules: tuple[str, ...]
    virtual_tokens: int
    trainable_parameters: int
    bytes_on_disk: int


@dataclass(frozen=True)
class Inspection:
    """A base model, and what an adapter would do to it.

    Attributes:
        model_class: Name of the model's class.
        parameters: Numbers in the base model; what is tied counts once.
        bytes: Bytes of its weights.
        tree: Its modules, equal layers folded.
        adapter: What the config means; None where none was given.
    """

    model_class: str
    parameters: int
    bytes: int
    tree: Node
    adapter: AdapterReport | None = None


def inspect(
    model: nn.Module | str | Path,
    config: PeftConfig | None = None,
    task_type: TaskType | str | None = None,
) -> Inspection:
    """What `model` is made of, and what an adapter of `config` would do to it.

    Nothing is attached or changed.

    Args:
        model: A module, or the folder or hub id of a base model, of which the config alone is
            read: no weights, no memory.
        config: Of any method.
        task_type: Decides the head of a model that is read; None takes that of `config`, or else
            the one that the model's own config names.

    Raises:
        ConfigError, CheckpointError: A model or config that cannot be used.
        TargetError: Targets that match nothing, with the nearest names.
    """
    if not isinstance(model, nn.Module):
        asked = task_type or (None if config is None else config.task_type)
        task = as_enum(TaskType, asked or task_of(load_config(str(model))), "task_type")
        model = load_skeleton(str(model), task)
        if config is not None and config.task_type is None:
            config = config.changed(task_type=task)
    adapter = None if config is None else _built(model, config)
    parameters = list(model.parameters())  # what is tied is in it once
    return Inspection(
        model_class=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        bytes=_bytes(parameters),
        tree=module_tree(model, None if adapter is None else _added(adapter)),
        adapter=None if adapter is None or config is None else _report(model, config, adapter),
    )


def _built(model: nn.Module, config: PeftConfig) -> Adapter:
    """The adapter, made without moving the random numbers that a training will draw."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        return build_adapter(model, config)


def _report(model: nn.Module, config: PeftConfig, adapter: Adapter) -> AdapterReport:
    virtual = adapter.virtual_tokens
    encoder = None if virtual is None else virtual.encoder
    state = {} if encoder is None else encoder.state_dict()
    return AdapterReport(
        method=config.peft_type.lower(),
        patterns=_patterns(config, adapter),
        not_hit=_not_hit(model, config, adapter),
        saved_modules=tuple(adapter.saved),
        virtual_tokens=0 if virtual is None else virtual.num_virtual_tokens,
        trainable_parameters=_trainable(adapter),
        bytes_on_disk=_bytes([*adapter_tensors(adapter).values(), *state.values()]),
    )


def _patterns(config: PeftConfig, adapter: Adapter) -> tuple[PatternHits, ...]:
    if not isinstance(config, TargetedConfig) or not isinstance(adapter.config, TargetedConfig):
        return ()
    paths = {path: adapter.views[path].target_path for path in adapter.layers}
    wanted = config.target_modules
    if isinstance(wanted, str) and wanted != "all-linear":
        hit = [path for path, target in paths.items() if re.fullmatch(wanted, target)]
        return (PatternHits(wanted, tuple(hit)),)
    if not isinstance(wanted, list):  # left open: the resolved config says what was chosen
        wanted = list(adapter.config.target_modules or [])
    names = [*wanted, *(getattr(adapter.config, "target_parameters", None) or [])]
    return tuple(
        PatternHits(
            name, tuple(path for path, target in paths.items() if matches_suffix(target, [name]))
        )
        for name in names
    )


def _not_hit(model: nn.Module, config: PeftConfig, adapter: Adapter) -> tuple[str, ...]:
    method = METHODS[config.peft_type]
    if not issubclass(method, LayerAdapter):
        return ()
    inside = tuple(f"{path}." for path in adapter.saved)
    return tuple(
        path
        for path, view in adaptable_layers(model).items()
        if view.kind in method.kinds
        and path not in {*adapter.layers, *adapter.saved}
        and not path.startswith(inside)
    )


def _added(adapter: Adapter) -> dict[str, int]:
    """Numbers to train, by the path of the module that they belong to."""
    added = {path: _trainable(module) for path, module in adapter.layers.items()}
    added |= {path: _trainable(module) for path, module in adapter.saved.items()}
    if adapter.virtual_tokens is not None:
        added[""] = _trainable(adapter.virtual_tokens)
    return added


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
