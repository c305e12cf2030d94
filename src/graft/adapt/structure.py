"""What graft reads off a base model's structure, so that no table has to know architectures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)

from graft.adapt.layers import LayerView, view_of
from graft.adapt.parameters import ParameterView
from graft.config import TaskType
from graft.errors import ConfigError
from graft.hub import load_tokenizer
from graft.methods import BaseShape
from graft.methods.base import adapter_dtype

__all__ = [
    "adaptable_layers",
    "bare_parameters",
    "base_shape",
    "head_paths",
    "input_embeddings",
    "is_causal",
    "no_prefix",
    "tied_head",
]

_HEADS = ("classifier", "score", "qa_outputs")  # PEFT's names, for models of no known kind
# The last name in the path of an attention projection, in any model that follows the customs.
_ATTENTION = {
    "qkv": r"c_attn|query_key_value|qkv(_proj)?|w_?qkv|w_pack|in_proj|att_proj",
    "query": r"w?q|q_proj|q_lin|query(_proj)?|wq",
    "key": r"w?k|k_proj|k_lin|key(_proj)?|wk",
    "value": r"w?v|v_proj|v_lin|value(_proj)?|wv",
}


def text_config(model: nn.Module) -> Any:
    """The config of the (decoder of the) language model, or None for a bare module."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether `model` has both; T5's token classifier, for one, is an encoder alone."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head; itself where it has none."""
    own = getattr(model, "base_model", model)
    return own if isinstance(own, nn.Module) else model


def cache_owner(model: Any) -> nn.Module:
    """The module whose layers use the key-value cache, below any head."""
    return model.get_decoder()


def is_causal(model: nn.Module) -> bool:
    """Whether each token sees only those before it (a decoder without an encoder)."""
    if is_encoder_decoder(model):
        return False
    config = text_config(model)
    asked = getattr(config, "is_causal", None)  # makes an encoder of a decoder
    if asked is not None:
        return bool(asked)
    flags = [
        m.is_causal for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)
    ]
    return all(flags) if flags else type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def input_embeddings(model: Any) -> Any:
    """The module that looks up the input embeddings (of the encoder, where there is one).

    None where a model of several parts, such as CLIP, has none as a whole.
    """
    owner = model.get_encoder() if is_encoder_decoder(model) else model
    getter = getattr(owner, "get_input_embeddings", None)  # FSMT's encoder has none
    try:
        return model.get_input_embeddings() if getter is None else getter()
    except NotImplementedError:
        return None


def head_paths(model: nn.Module, task_type: TaskType | None) -> list[str]:
    """Paths of what stands on top of the backbone: a new head that a task needs trained.

    Empty for language models, whose head is pretrained.
    """
    new_head = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
    if task_type not in new_head:
        return []
    if not isinstance(model, PreTrainedModel):  # nothing says which part is the backbone
        return [name for name, _ in model.named_children() if name in _HEADS]
    inside = {getattr(model, "base_model_prefix", "")}  # and the parts of a backbone without a name
    for name, child in model.named_children():
        if isinstance(child, PreTrainedModel) or child is model.get_input_embeddings():
            inside.add(name)
    return [
        name
        for name, child in model.named_children()
        if name not in inside and next(child.parameters(), None) is not None
    ]


def adaptable_layers(model: nn.Module) -> dict[str, LayerView]:
    """Views of all layers that some method can adapt, by path, with their roles."""
    views: dict[str, LayerView] = {}
    inside = ""  # an attention module whose projections are never called
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside = f"{path}."
            found = _attention_parameters(module, path)
        else:
            found = [view for view in [view_of(module, path)] if view is not None]
        views.update({view.path: view for view in found})
    if hasattr(model, "get_input_embeddings") and text_config(model) is not None:
        own = input_embeddings(model)
        for view in views.values():
            if view.module is own:
                view.role = "embedding"
    hidden = getattr(text_config(model), "hidden_size", None)
    attention = {_parent(path) for path, view in views.items() if _attention_role(path)}
    for path, view in views.items():
        if view.kind not in ("linear", "conv1d") or not re.search(r"\.\d+\.", path):
            continue  # heads, embeddings and norms have no role
        view.role = _attention_role(path)
        projects_back = view.out_features == hidden != view.in_features
        if view.role is None and projects_back and _parent(path) not in attention:
            view.role = "down"
    return views


def _attention_parameters(module: nn.MultiheadAttention, path: str) -> list[LayerView]:
    if module.in_proj_weight is None:  # keys or values of another width: three projections
        return []
    return [ParameterView(module, path, name) for name in ("in_proj_weight", "out_proj.weight")]


def bare_parameters(model: nn.Module) -> dict[str, ParameterView]:
    """Views of the matrices and stacks of matrices that belong to no layer, by path."""
    out: dict[str, ParameterView] = {}
    for path, module in model.named_modules():
        if not path or isinstance(module, nn.MultiheadAttention) or view_of(module, path):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim in (2, 3):
                view = ParameterView(module, path, name)
                out[view.path] = view
    return out


def tied_head(model: nn.Module) -> LayerView | None:
    """The output head, where it shares its weight with the input embeddings."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    if head is None or head.weight is not input_embeddings(model).weight:
        return None
    path = next(path for path, module in model.named_modules() if module is head)
    return view_of(head, path)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _attention_role(path: str) -> str | None:
    name = path.rpartition(".")[2].lower()
    return next((role for role, names in _ATTENTION.items() if re.fullmatch(names, name)), None)


def base_shape(
    model: nn.Module,
    tokenizer_name: str | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
) -> BaseShape:
    """What virtual tokens need to know of `model`.

    Args:
        model: The base model.
        tokenizer_name: Of the tokenizer for a text to start from; None: the base model's own.
        tokenizer_options: For that tokenizer.

    Raises:
        ConfigError: If the model is not a transformer with input embeddings.
    """
    config = text_config(model)
    if config is None or not hasattr(model, "get_input_embeddings"):
        raise ConfigError(
            f"{type(model).__name__} has no input embeddings; virtual tokens need a transformers "
            "model. LoRA, IA3 and BitFit work on any module."
        )
    embedding = input_embeddings(model)
    weight = getattr(embedding, "weight", None)
    if weight is None or weight.ndim != 2:
        way = "" if embedding is None else f" (its input goes through a {type(embedding).__name__})"
        raise ConfigError(
            f"{type(model).__name__} reads no tokens{way}, so virtual tokens have no place in it. "
            "LoRA, IA3 and BitFit work on any module."
        )
    layers = getattr(config, "num_decoder_layers", None) or _size(config, "num_hidden_layers")
    if layers is None:
        raise ConfigError(
            f"The config of {type(model).__name__} says no number of layers, which virtual tokens "
            "need. LoRA, IA3 and BitFit work on any module."
        )
    hidden = config.hidden_size
    heads = _size(config, "num_attention_heads") or 1  # none in Mamba; only a prefix needs them
    kv_heads = _size(config, "num_key_value_heads") or heads
    if getattr(config, "multi_query", False) and not hasattr(config, "num_key_value_heads"):
        kv_heads = 1
    return BaseShape(
        hidden=hidden,
        num_layers=layers,
        attention_heads=heads,
        num_heads=kv_heads,
        head_dim=_size(config, "head_dim") or _size(config, "d_kv") or hidden // heads,
        vocab_size=weight.shape[0],
        submodules=2 if is_encoder_decoder(model) else 1,
        dtype=adapter_dtype(weight.dtype),
        device=weight.device,
        embed=partial(_embed, embedding),
        tokenize=_tokenizer(
            tokenizer_name or getattr(model, "name_or_path", None), tokenizer_options or {}
        ),
        key_values=partial(_key_values, model),
    )


def _size(config: Any, name: str) -> int | None:
    """A size that all layers share; None where there is none."""
    return None if _differs(config, name) else getattr(config, name, None)


def _differs(config: Any, name: str) -> bool:
    """Whether each layer has its own `name`, as head sizes of Gemma 4; transformers then raises."""
    try:
        getattr(config, name, None)
    except RuntimeError:
        return True
    return False


def require_cache(model: nn.Module) -> None:
    """Raise a ConfigError unless all layers take keys and values of one size from a cache."""
    config = text_config(model)
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        if _differs(config, name):
            raise no_prefix(
                model, f"has layers that differ in {name}, so a prefix has no one shape"
            )
    kinds = set(getattr(text_config(model), "layer_types", None) or ())
    strange = {k for k in kinds if not re.fullmatch(r"(full|sliding|chunked)_attention", k)}
    if strange or "cache" not in inspect.signature(cache_owner(model).forward).parameters:
        why = f"layers of {', '.join(sorted(strange))}" if strange else "no key-value cache"
        raise no_prefix(model, f"has {why}, so a prefix has no place in its attention")


def no_prefix(model: nn.Module, why: str) -> ConfigError:
    """What is said of a model that takes no prefix."""
    return ConfigError(
        f"{type(model).__name__} {why}. Virtual tokens as input embeddings work on it: "
        "Prompt-Tuning, P-Tuning."
    )


def _embed(embedding: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return embedding(ids)


def _tokenizer(name: str | None, options: Mapping[str, Any]) -> Callable[[str], list[int]]:
    def tokenize(text: str) -> list[int]:
        if not name:
            raise ConfigError("Starting from a text needs tokenizer_name_or_path.")
        return load_tokenizer(name, **options)(text)["input_ids"]

    return tokenize


def _key_values(model: nn.Module, ids: Tensor) -> Tensor:
    """The model's own cache of `ids` [N] -> [L, 2, H, N, K]."""
    own: Any = DynamicCache()
    cache = own
    inputs: dict[str, Any] = {"input_ids": ids[None]}
    if is_encoder_decoder(model):
        cache = EncoderDecoderCache(own, DynamicCache())
        inputs["decoder_input_ids"] = ids[None]
    handle = cache_owner(model).register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "cache": cache}), with_kwargs=True
    )
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            backbone(model)(**inputs)
    finally:
        handle.remove()
        model.train(was_training)
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in own.layers])
