"""What an adapter would do to a base model and what it would cost; each method's, by default."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.adapter import Adapter, adapter_tensors, build_adapter
from graft.adapt.structure import adaptable_layers
from graft.config import PeftConfig, PeftType, TaskType
from graft.errors import ConfigError, TargetError
from graft.inspection.coverage import (
    PatternHits,
    StackHits,
    coverage_warnings,
    pattern_hits,
    stack_hits,
)
from graft.methods import METHODS, LayerAdapter, make_config

__all__ = [
    "AdapterReport",
    "Suggestion",
    "added_numbers",
    "build",
    "report",
    "suggest",
    "usual_settings",
]

_VIRTUAL_TOKENS = 20


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter would do to a base model, and what it would cost.

    Attributes:
        method: The method, as in run files.
        learning_rate: The method's default.
        patterns: The target patterns, chosen from the structure where the config names none.
        stacks: All targets, counted by the layer that they lie in.
        not_hit: Paths of the layers that the method could adapt and no pattern hits.
        saved_modules: Paths of the modules that are trained whole, such as a new head.
        virtual_tokens: Virtual tokens in each row.
        trainable_parameters: Numbers that are trained.
        share: The same, as a part of the base model's parameters.
        bytes_on_disk: Bytes of the tensors that are saved.
        warnings: Sentences on what may not be meant, such as a pattern that hits some layers only.
    """

    method: str
    learning_rate: float
    patterns: tuple[PatternHits, ...]
    stacks: tuple[StackHits, ...]
    not_hit: tuple[str, ...]
    saved_modules: tuple[str, ...]
    virtual_tokens: int
    trainable_parameters: int
    share: float
    bytes_on_disk: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """A method with its defaults on a base model.

    Attributes:
        method: The method, as in run files.
        settings: What its config must say; all else is left to defaults.
        adapter: What it would do and cost; None where it does not work on this model.
        problem: Why it does not work; None where it does.
        command: The command line that makes a run file of it and of the file DATA; None where it
            does not work, and for a module, which no command line can name.
    """

    method: str
    settings: dict[str, Any]
    adapter: AdapterReport | None = None
    problem: str | None = None
    command: str | None = None


def suggest(
    model: nn.Module, task_type: TaskType | None, parameters: int, source: str | None = None
) -> tuple[Suggestion, ...]:
    """Every method, with its defaults.

    Args:
        model: The base model.
        task_type: What its head is for; None where it does not say.
        parameters: Numbers in it.
        source: Its folder or hub id.
    """
    found = (_suggestion(model, task_type, parameters, kind) for kind in METHODS)
    if source is None:
        return tuple(found)
    return tuple(
        replace(each, command=f"graft init {shlex.quote(source)} DATA --method {each.method}")
        if each.problem is None
        else each
        for each in found
    )


def usual_settings(method: str) -> dict[str, int]:
    """What a method cannot do without and has no default for: the number of virtual tokens."""
    needing = {kind.lower() for kind in METHODS if METHODS[kind].config_class.is_prompt_learning}
    named = method.lower().replace("-", "_")
    return {"num_virtual_tokens": _VIRTUAL_TOKENS} if named in needing else {}


def _suggestion(
    model: nn.Module, task_type: TaskType | None, parameters: int, kind: PeftType
) -> Suggestion:
    method = kind.lower()
    settings = usual_settings(method)
    config = make_config(method, task_type=task_type or TaskType.FEATURE_EXTRACTION, **settings)
    try:
        return Suggestion(method, settings, report(model, config, build(model, config), parameters))
    except (ConfigError, TargetError) as error:
        return Suggestion(method, settings, problem=str(error))


def build(model: nn.Module, config: PeftConfig) -> Adapter:
    """The adapter, made without moving the random numbers that a training will draw."""
    if isinstance(config, PeftConfig) and config.is_prompt_learning:
        config = config.changed(inference_mode=True)  # what tokens start from costs a forward pass
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        return build_adapter(model, config)


def report(
    model: nn.Module, config: PeftConfig, adapter: Adapter, parameters: int
) -> AdapterReport:
    """What `adapter`, which `build` made of `config`, does to `model` and costs.

    Args:
        model: The base model.
        config: As it was given.
        adapter: Not attached.
        parameters: Numbers in the base model.
    """
    virtual = adapter.virtual_tokens
    encoder = None if virtual is None else virtual.encoder
    state = {} if encoder is None else encoder.state_dict()
    patterns = pattern_hits(model, config, adapter)
    numbers = trainable_numbers(adapter)
    return AdapterReport(
        method=config.peft_type.lower(),
        learning_rate=METHODS[config.peft_type].learning_rate,
        patterns=patterns,
        stacks=stack_hits(model, adapter.layers),
        not_hit=_not_hit(model, config, adapter),
        saved_modules=tuple(adapter.saved),
        virtual_tokens=0 if virtual is None else virtual.num_virtual_tokens,
        trainable_parameters=numbers,
        share=numbers / parameters,
        bytes_on_disk=_bytes([*adapter_tensors(adapter).values(), *state.values()]),
        warnings=tuple(coverage_warnings(model, patterns, adapter.layers)),
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


def added_numbers(adapter: Adapter) -> dict[str, int]:
    """Numbers to train, by the path of the module that they belong to."""
    added = {path: trainable_numbers(module) for path, module in adapter.layers.items()}
    added |= {path: trainable_numbers(module) for path, module in adapter.saved.items()}
    if adapter.virtual_tokens is not None:
        added[""] = trainable_numbers(adapter.virtual_tokens)
    return added


def trainable_numbers(module: nn.Module) -> int:
    """Numbers in `module` that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
