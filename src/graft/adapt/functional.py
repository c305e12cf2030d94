"""PEFT's functions around a model: its state dict as PEFT names it, and quantised base models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.adapter import adapter_tensors, tensors_beside
from graft.adapt.checkpoint import of_adapter, set_tensors
from graft.adapt.model import PeftModel
from graft.adapt.routing import RowGroup
from graft.config import PeftConfig
from graft.errors import ConfigError

__all__ = [
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]


def get_peft_model_state_dict(
    model: PeftModel, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default"
) -> dict[str, Tensor]:
    """The tensors of one adapter by PEFT's keys, as they are saved.

    Args:
        model: The model with the adapter.
        state_dict: Take the values from here, a state dict of `model`, instead of from `model`.
        adapter_name: Which adapter.
    """
    adapter = model.adapter(adapter_name)
    if state_dict is None:
        return adapter_tensors(adapter)
    prefix = f"adapters.{adapter_name}."
    own = {
        name: state_dict[f"{prefix}{name}"].to(parameter)
        for name, parameter in adapter.state_dict().items()
    }
    return torch.func.functional_call(_Tensors(adapter), {f"0.{n}": t for n, t in own.items()}, ())


class _Tensors(nn.Sequential):
    """Calls `adapter_tensors` as a forward, so that other values can stand in for a moment."""

    def forward(self) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return adapter_tensors(self[0])  # pyright: ignore[reportArgumentType]


def set_peft_model_state_dict(
    model: PeftModel, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default"
) -> None:
    """Put tensors by PEFT's keys into one adapter.

    An encoder of virtual tokens stays if it makes just these; else the vectors come without one,
    and cannot be trained further.

    Raises:
        CheckpointError: If any tensor has no home, any parameter no tensor, or a shape differs.
    """
    adapter = model.adapter(adapter_name)
    virtual = adapter.virtual_tokens
    tensors = of_adapter(peft_model_state_dict, model.base_model, "The state dict")
    given = tensors.get("prompt_embeddings")
    keeps = virtual is None or (given is not None and virtual.makes(given))
    beside = tensors_beside(adapter) if keeps else None
    set_tensors(adapter, tensors, beside, "The state dict")


def inject_adapter_in_model(
    peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default"
) -> nn.Module:
    """Attach an adapter that acts at layers to `model`, and return `model` itself.

    For code that wants no wrapper: the adapter acts in every forward, and its parameters are the
    model's own, under `graft_adapters`.

    Raises:
        ConfigError: For methods with virtual tokens, which need `get_peft_model`.
    """
    if peft_config.is_prompt_learning:
        raise ConfigError(
            f"{peft_config.peft_type} puts virtual tokens in front of the input, which needs a "
            "wrapper: use get_peft_model."
        )
    attached = PeftModel(model, peft_config, adapter_name)
    attached.router.groups = (RowGroup(slice(0, 1), (adapter_name,)),)
    model.add_module("graft_adapters", attached.adapters)
    return model


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Freeze a quantised base model and turn on gradient checkpointing.

    PEFT's function also casts every tensor that is not quantised to fp32, embeddings and output
    head included, which costs more memory than 16-bit LoRA does. Adapters are fp32 here anyway
    and norms compute in fp32 inside transformers, so nothing is cast.
    """
    base: Any = model.requires_grad_(False)
    if use_gradient_checkpointing:
        options = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    return model
