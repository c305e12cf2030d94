"""One adapter: a config and the modules it means on a given base model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graft.adapt.layers import LayerView
from graft.adapt.routed import trainable_copy
from graft.adapt.structure import base_shape, head_paths, require_cache, tied_head
from graft.adapt.targets import find_targets
from graft.config import PeftConfig
from graft.errors import ConfigError, TargetError, did_you_mean
from graft.methods import METHODS, LayerAdapter, PrefixAdapter, VirtualTokens
from graft.methods.base import matches_suffix
from graft.methods.prompt_tuning import PromptLearningConfig
from graft.methods.targeting import TargetedConfig

__all__ = ["Adapter", "build_adapter"]


class Adapter(nn.Module):
    """One named set of trained parameters, of any method.

    Its tree mirrors the base model's, so that parameters are called
    `tree.<path of the layer>.lora_A` and the like.

    Attributes:
        config: The resolved config.
        views: The target layers by path.
        layers: The layer adapters by path.
        saved: The modules trained whole (copies of the base model's), by path.
        virtual_tokens: The prompt or prefix, or None.
    """

    def __init__(self, config: PeftConfig) -> None:
        super().__init__()
        self.config = config
        self.tree = nn.Module()
        self.views: dict[str, LayerView] = {}
        self.layers: dict[str, LayerAdapter] = {}
        self.saved: dict[str, nn.Module] = {}

    @property
    def virtual_tokens(self) -> VirtualTokens | None:
        return self._modules.get("prompt_encoder")  # pyright: ignore[reportReturnType]

    def add_layer(self, view: LayerView, adapter: LayerAdapter) -> None:
        """Put `adapter` at the place of its layer in the tree."""
        self.views[view.path] = view
        self.layers[view.path] = adapter
        _put(self.tree, view.path, adapter)

    def save_module(self, path: str, module: nn.Module) -> None:
        """Keep `module`, trained whole, at its place in the tree."""
        self.saved[path] = module
        _put(self.tree, path, module)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def build_adapter(model: nn.Module, given: PeftConfig) -> Adapter:
    """Find the targets of `given` in `model` and make the modules; the model is not touched.

    Raises:
        ConfigError, TargetError: As the config and the model demand.
    """
    if not isinstance(given, PeftConfig) or type(given) is PeftConfig:
        raise ConfigError(f"The config of a method is needed, such as LoraConfig(), not {given!r}.")
    given.require_supported()
    heads = head_paths(model, given.task_type)
    saved = _saved_paths(model, given.modules_to_save or [], heads)
    config = given.changed(
        modules_to_save=list(dict.fromkeys([*(given.modules_to_save or []), *heads])) or None,
        base_model_name_or_path=given.base_model_name_or_path
        or getattr(model, "name_or_path", None)
        or None,
    )
    method = METHODS[given.peft_type]
    if issubclass(method, LayerAdapter):
        assert isinstance(config, TargetedConfig)
        adapter = _with_layers(model, config, method, saved)
    else:
        assert isinstance(config, PromptLearningConfig)
        adapter = _with_virtual_tokens(model, config, method)
    for path in saved:
        adapter.save_module(path, trainable_copy(model.get_submodule(path)))
    return adapter


def _with_layers(
    model: nn.Module, config: TargetedConfig, method: type[LayerAdapter], saved: Sequence[str]
) -> Adapter:
    targets = find_targets(model, config, method, saved)
    config = method.resolved(config, targets.layers, targets.names)
    if targets.parameter_names and not getattr(config, "target_parameters", None):
        config = config.changed(target_parameters=targets.parameter_names)
    kinds = {view.kind for view in targets.layers}
    adapter = Adapter(config.changed(fan_in_fan_out="conv1d" in kinds))
    for view in targets.layers:
        adapter.add_layer(view, method(config, view))
    for view in targets.others:
        companion = method.elsewhere(config, view)
        if companion is not None:
            adapter.add_layer(view, companion)
    _add_to_tied_head(model, adapter)
    return adapter


def _add_to_tied_head(model: nn.Module, adapter: Adapter) -> None:
    for path, view in list(adapter.views.items()):
        if view.role == "embedding" and (head := tied_head(model)) is not None:
            twin = adapter.layers[path].for_tied(head)
            if twin is not None:
                adapter.add_layer(head, twin)


def _with_virtual_tokens(
    model: nn.Module, config: PromptLearningConfig, method: type[VirtualTokens]
) -> Adapter:
    if config.task_type is None:
        raise ConfigError(
            f"{type(config).__name__} needs task_type, such as 'CAUSAL_LM' for a language model."
        )
    shape = base_shape(
        model,
        getattr(config, "tokenizer_name_or_path", None),
        getattr(config, "tokenizer_kwargs", None),
    )
    if issubclass(method, PrefixAdapter):
        require_cache(model)
    virtual = method(config, shape)
    resolved = config.changed(
        **virtual.sizes,
        num_layers=shape.num_layers,
        num_transformer_submodules=shape.submodules,
    )
    adapter = Adapter(resolved)
    adapter.add_module("prompt_encoder", virtual)
    return adapter


def _saved_paths(model: nn.Module, names: Sequence[str], heads: Sequence[str]) -> list[str]:
    paths = [path for path, _ in model.named_modules() if path]
    found = list(heads)
    for name in names:
        hit = [path for path in paths if matches_suffix(path, [name])]
        if not hit and name not in ("classifier", "score"):  # PEFT writes both, whichever is there
            leaves = {path.rpartition(".")[2] for path in paths}
            raise TargetError(
                f"modules_to_save: {name!r} matches no module.{did_you_mean(name, leaves)}"
            )
        found += hit
    return list(dict.fromkeys(found))


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """All trainable and saved tensors of `adapter`, by PEFT's keys."""
    whole = "base_model." if adapter.virtual_tokens is not None else "base_model.model."
    out: dict[str, Tensor] = {}
    if adapter.virtual_tokens is not None:
        out.update(adapter.virtual_tokens.to_disk())
    for path, layer in adapter.layers.items():
        for suffix, tensor in layer.to_disk().items():
            out[f"base_model.model.{adapter.views[path].disk_path}.{suffix}"] = tensor
    for path, module in adapter.saved.items():
        for name, tensor in module.state_dict().items():
            out[f"{whole}{path}.{name}"] = tensor.detach()
    return out


def tensors_beside(adapter: Adapter) -> dict[str, Tensor]:
    """What PEFT's file has no place for: the encoder of virtual tokens, buffers of layers."""
    if adapter.virtual_tokens is not None:
        encoder = adapter.virtual_tokens.encoder
        return {} if encoder is None else dict(encoder.state_dict())
    return {
        f"{path}.{name}": buffer
        for path, layer in adapter.layers.items()
        for name, buffer in layer.named_buffers()
    }


def set_adapter_tensors(
    adapter: Adapter, tensors: dict[str, Tensor], beside: dict[str, Tensor] | None
) -> None:
    """The inverse of `adapter_tensors` and `tensors_beside`; keys and shapes have been checked."""
    whole = "base_model." if adapter.virtual_tokens is not None else "base_model.model."
    if adapter.virtual_tokens is not None:
        adapter.virtual_tokens.from_disk(tensors, beside)
    for path, layer in adapter.layers.items():
        prefix = f"base_model.model.{adapter.views[path].disk_path}."
        layer.from_disk({suffix: tensors[prefix + suffix] for suffix in layer.to_disk()})
        for name, buffer in layer.named_buffers():
            if beside is not None and f"{path}.{name}" in beside:
                buffer.copy_(beside[f"{path}.{name}"])
    for path, module in adapter.saved.items():
        own = {name: tensors[f"{whole}{path}.{name}"] for name in module.state_dict()}
        with torch.no_grad():
            module.load_state_dict(own)
