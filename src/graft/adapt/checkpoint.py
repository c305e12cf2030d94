"""Adapters on disk: PEFT's format in both directions, and what PEFT has no place for beside it.

`adapter_config.json`, `adapter_model.safetensors` and `README.md` are PEFT's.
`graft_state.safetensors` holds the encoder of P-Tuning or Prefix-Tuning, so that a run can go on,
and what PiSSA or OLoRA took out of the weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from graft.adapt.adapter import (
    Adapter,
    adapter_tensors,
    build_adapter,
    set_adapter_tensors,
    tensors_beside,
)
from graft.atomic import write_bytes, write_text
from graft.config import CONFIG_NAME, PeftConfig
from graft.download import adapter_folder, refuse_pointer
from graft.errors import CheckpointError, ConfigError, did_you_mean
from graft.methods.base import check_shape

if TYPE_CHECKING:
    from graft.adapt.model import PeftModel

__all__ = [
    "STATE_NAME",
    "WEIGHTS_NAME",
    "load",
    "model_card",
    "of_adapter",
    "read",
    "save",
    "set_tensors",
]

WEIGHTS_NAME = "adapter_model.safetensors"
STATE_NAME = "graft_state.safetensors"
_OLD_WEIGHTS = "adapter_model.bin"
_HUB = ("revision", "subfolder", "cache_dir", "token")
# PEFT's arguments about where and how tensors are put.
_PLACING = (
    "torch_device", "device_map", "max_memory", "offload_folder", "offload_dir", "offload_index",
    "torch_dtype", "dtype", "low_cpu_mem_usage", "ephemeral_gpu_offload",
)  # fmt: skip


def save(adapter: Adapter, folder: Path) -> None:
    """Write `adapter` into `folder` as PEFT does; the config comes last, so that it vouches."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; an adapter is saved into a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS_NAME, _bytes(adapter_tensors(adapter)))
    beside = tensors_beside(adapter)
    if beside:
        write_bytes(folder / STATE_NAME, _bytes(beside))
    else:
        (folder / STATE_NAME).unlink(missing_ok=True)
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", model_card(adapter.config))
    write_text(folder / CONFIG_NAME, adapter.config.changed(inference_mode=True).to_json())


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Cloned, as safetensors refuses tensors that share memory.
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return to_bytes(plain, metadata={"format": "pt"})


def model_card(config: PeftConfig) -> str:
    """The text of an adapter's README.md, by which hubs recognise it as PEFT's."""
    base = config.base_model_name_or_path
    known = f"base_model: {base}\n" if base and not Path(base).is_absolute() else ""
    tag = "lora" if config.to_dict()["peft_type"] == "LORA" else config.peft_type.lower()
    return (
        f"---\nlibrary_name: peft\n{known}tags:\n- {tag}\n- graft\n---\n\n"
        f"# {config.peft_type} adapter\n\n"
        f"Trained with graft{f' on `{base}`' if known else ''}; "
        "graft and PEFT load it with `PeftModel.from_pretrained`.\n"
    )


def read(folder: Path) -> tuple[PeftConfig, dict[str, Tensor], dict[str, Tensor] | None]:
    """Config, tensors by PEFT's key, and those that PEFT has no place for, where they are.

    Raises:
        CheckpointError: No adapter there, or a broken one.
        ConfigError: One of a method or with a feature that graft does not have.
    """
    config = PeftConfig.from_pretrained(folder)
    weights = folder / WEIGHTS_NAME
    if weights.is_file():
        tensors = _load(weights)
    elif (folder / _OLD_WEIGHTS).is_file():
        tensors = _load_old(folder / _OLD_WEIGHTS)
    else:
        raise CheckpointError(
            f"{folder} has no weights: expected {WEIGHTS_NAME} (or {_OLD_WEIGHTS})."
        )
    state = folder / STATE_NAME
    return config, tensors, _load(state) if state.is_file() else None


def _load(path: Path) -> dict[str, Tensor]:
    refuse_pointer(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or no safetensors file ({path.stat().st_size:,} bytes): {error}."
        ) from None


def _load_old(path: Path) -> dict[str, Tensor]:
    refuse_pointer(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is broken or holds more than weights: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} holds no dict of tensors.")
    return tensors


def load(
    model: PeftModel,
    source: str | Path,
    name: str,
    is_trainable: bool,
    hub: Mapping[str, Any],
) -> None:
    """Attach the adapter at `source` to `model`; see `PeftModel.load_adapter`."""
    for argument in hub:
        if argument not in (*_HUB, *_PLACING):
            hint = did_you_mean(argument, ("is_trainable", *_HUB))
            raise ConfigError(f"Loading an adapter has no argument {argument!r}.{hint}")
    folder = adapter_folder(source, **{name: hub[name] for name in _HUB if name in hub})
    config, tensors, beside = read(folder)
    with model.unmerged():
        tensors = of_adapter(tensors, model.base_model, str(source))
        config = config.located(tensors).changed(inference_mode=not is_trainable)
        adapter = build_adapter(model.base_model, config)
    set_tensors(adapter, tensors, beside, str(source))
    if is_trainable and adapter.virtual_tokens is not None and adapter.virtual_tokens.is_fixed:
        raise ConfigError(
            f"{source} holds virtual tokens without the encoder that made them ({STATE_NAME}), so "
            "they cannot be trained further. Load it for inference, or train a new adapter."
        )
    model.attach(name, adapter)


def of_adapter(tensors: Mapping[str, Tensor], base: nn.Module, source: str) -> dict[str, Tensor]:
    """`tensors` without what PEFT writes twice, and without copies of the base model's own.

    With `bias="all"` PEFT writes heads again under the names of its wrappers; beside an adapted
    embedding it writes the embedding itself.
    """
    out: dict[str, Tensor] = {}
    parameters = dict(base.named_parameters())
    for key, tensor in tensors.items():
        plain = key.replace(".modules_to_save.", ".")
        if ".original_module." in key or (plain != key and plain in tensors):
            continue
        path = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        own = parameters.get(path)
        if own is None or not path.endswith(".weight"):
            out[key] = tensor
        elif ".base_layer." in key and not _same(own, tensor):
            raise CheckpointError(
                f"{source} was trained on a base model whose {path} is another one "
                f"({tuple(tensor.shape)}, here {tuple(own.shape)}); load that base model, or "
                "resize the embeddings of this one as it was done there."
            )
        elif ".base_layer." not in key:
            out[key] = tensor
    return out


def _same(own: Tensor, other: Tensor) -> bool:
    return own.shape == other.shape and torch.allclose(
        own.detach().float().cpu(), other.float().cpu(), atol=1e-2
    )


def set_tensors(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    beside: Mapping[str, Tensor] | None,
    source: str,
) -> None:
    """Put all of `tensors` into `adapter`.

    Raises:
        CheckpointError: If a tensor has no home, a home no tensor, or a shape differs.
    """
    wanted = adapter_tensors(adapter)
    whose = adapter.config.base_model_name_or_path
    trained_on = f" It was trained on {whose}." if whose else ""
    homeless = [key for key in tensors if key not in wanted]
    if homeless:
        hint = did_you_mean(homeless[0], wanted, n=1)
        raise CheckpointError(
            f"{source}: {_counted(homeless)} no home in this model.{hint}{trained_on}"
        )
    absent = [key for key in wanted if key not in tensors]
    if absent:
        raise CheckpointError(f"{source} lacks {absent[0]!r}{_more(absent)}.{trained_on}")
    for key, tensor in tensors.items():
        if key != "prompt_embeddings":  # its rows may be repeated: VirtualTokens checks
            check_shape(key, tensor, wanted[key].shape)
    set_adapter_tensors(adapter, dict(tensors), None if beside is None else dict(beside))


def _counted(keys: Sequence[str]) -> str:
    return f"the tensor {keys[0]!r}{_more(keys)} {'has' if len(keys) == 1 else 'have'}"


def _more(keys: Sequence[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
