"""A base model, from its config, its files or a module, and an adapter config -> the facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from graft.adapt.model import PeftModel
from graft.adapt.structure import head_paths
from graft.config import PeftConfig, TaskType, as_enum
from graft.errors import CheckpointError, ConfigError
from graft.hub import load_config, load_skeleton, resolve, task_of
from graft.inspection.adapters import (
    AdapterReport,
    Suggestion,
    added_numbers,
    build,
    report,
    suggest,
)
from graft.inspection.paths import RegexTest, try_regex
from graft.inspection.stored import StoredWeights, read_stored_weights
from graft.inspection.tree import Node, module_tree

__all__ = ["Inspection", "inspect", "unsaid_sizes"]


@dataclass(frozen=True)
class Inspection:
    """A base model, and what an adapter would do to it.

    The keys of `graft inspect --json` are the attributes here, and in each part those of its class.

    Attributes:
        source: The folder or hub id that was read; None for a module.
        model_class: Name of the model's class.
        task_type: What its head is for; None for a module that does not say.
        parameters: Numbers in the base model; what is tied counts once.
        bytes: Bytes of its weights: of those in its files, where they are at hand.
        tree: Its modules, equal layers folded.
        stored: What its files hold; None where no files are at hand.
        adapter: What the config means; None where none was given.
        suggestions: Every method with its defaults; empty where a config or a regex was given.
        regex: What the regular expression matches; None where none was given.
        warnings: Sentences on what is odd about the model, such as files that do not fit its
            config.
    """

    source: str | None
    model_class: str
    task_type: TaskType | None
    parameters: int
    bytes: int
    tree: Node
    stored: StoredWeights | None = None
    adapter: AdapterReport | None = None
    suggestions: tuple[Suggestion, ...] = ()
    regex: RegexTest | None = None
    warnings: tuple[str, ...] = ()


def inspect(
    model: nn.Module | str | Path,
    config: PeftConfig | None = None,
    task_type: TaskType | str | None = None,
    *,
    regex: str | None = None,
) -> Inspection:
    """What `model` is made of, and what an adapter of `config` would do to it.

    Nothing is attached or changed, and no weight is loaded.

    Args:
        model: A module (of a `PeftModel`, its base model), or the folder or hub id of a base
            model. Its config is read, and of its weights the headers, where safetensors lie in
            the folder or the hub's cache: they say which dtypes there are, and whether they fit
            the config.
        config: Of any method; None: every method is looked at, with its defaults.
        task_type: Decides the head of a model that is read; None takes that of `config`, or else
            the one that the model's own config names.
        regex: A regular expression to try on the paths of all modules.

    Raises:
        ConfigError, CheckpointError: A model or config that cannot be used.
        TargetError: Targets that match nothing, with the nearest names.
    """
    stored, warnings = None, []
    source = None if isinstance(model, nn.Module) else str(model)
    asked = task_type or (config.task_type if isinstance(config, PeftConfig) else None)
    task: TaskType | None = None if asked is None else as_enum(TaskType, asked, "task_type")
    if isinstance(model, nn.Module):
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        if next(model.parameters(), None) is None:
            raise ConfigError(f"{type(model).__name__} has no parameters, so nothing to adapt.")
        if task is None and isinstance(model, PreTrainedModel):
            task = task_of(model.config, type(model).__name__)
    else:
        task, model, stored, warnings = _read(str(model), task)
        if config is not None and config.task_type is None:
            config = config.changed(task_type=task)
    adapter = None if config is None else build(model, config)
    tree = module_tree(
        model,
        None if adapter is None else added_numbers(adapter),
        None if stored is None else stored.dtypes,
    )
    alone = config is None and regex is None
    return Inspection(
        source=source,
        model_class=type(model).__name__,
        task_type=task,
        parameters=tree.parameters,
        bytes=_bytes(model, stored),
        tree=tree,
        stored=stored,
        adapter=None
        if adapter is None or config is None
        else report(model, config, adapter, tree.parameters),
        suggestions=suggest(model, task, tree.parameters, source) if alone else (),
        regex=None if regex is None else try_regex(model, regex),
        warnings=tuple(warnings),
    )


def _read(
    source: str, task: TaskType | None
) -> tuple[TaskType, PreTrainedModel, StoredWeights | None, list[str]]:
    """The model made from its config; what its files hold; what is odd about both."""
    folder = Path(resolve(source, part="config"))  # of a hub's cache: the weights may be there
    config = load_config(str(folder))
    model = load_skeleton(str(folder), task)
    task = task or task_of(config)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    warnings = [
        f"config.json does not say {name}; {size} is the default of {type(config).__name__}."
        for name, size in unsaid_sizes(config, raw).items()
    ]
    try:
        stored = read_stored_weights(folder, model)
    except CheckpointError as error:  # the config alone is still worth a look
        return task, model, None, [*warnings, str(error)]
    if stored is not None:
        warnings += stored.warnings(head_paths(model, task))
        warnings += _other_dtype(config, stored)
    return task, model, stored, warnings


def unsaid_sizes(config: PreTrainedConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the model that a config leaves to defaults, which are another model's, by name.

    Args:
        config: As transformers reads it.
        raw: What config.json says.
    """
    if any(isinstance(value, Mapping) and key.endswith("_config") for key, value in raw.items()):
        return {}  # the parts have sizes of their own
    known = config.to_dict()
    sizes = [config.attribute_map.get(n, n) for n in ("hidden_size", "num_hidden_layers")]
    return {name: known[name] for name in sizes if name in known and name not in raw}


def _other_dtype(config: PreTrainedConfig, stored: StoredWeights) -> list[str]:
    said = str(config.dtype).removeprefix("torch.")
    floats = {dtype for dtype in stored.dtypes.values() if "float" in dtype}
    if config.dtype is None or stored.quantization or not floats or said in floats:
        return []
    return [f"The files hold {' and '.join(sorted(floats))}; config.json says {said}."]


def _bytes(model: nn.Module, stored: StoredWeights | None) -> int:
    """Bytes of the weights, in the dtypes of the files where they are at hand."""
    if stored is not None and stored.quantization is not None:
        return stored.bytes
    dtypes = {} if stored is None else stored.dtypes
    return sum(
        parameter.numel() * getattr(torch, dtypes[name]).itemsize
        if name in dtypes
        else parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
    )
