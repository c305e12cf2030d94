"""The same weights and rows for PEFT and for graft, and what each makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import graft
from conformance.families import VOCAB
from graft.config import TaskType

from .cases import Model

__all__ = [
    "PEFT_WARNS",
    "TOLERANCE",
    "assert_same",
    "copy_weights",
    "gradients",
    "make_batch",
    "outputs",
    "own_tensors",
    "randomise",
]

TOLERANCE = 1e-5  # fp32, absolute; logits and gradients here are of order 1
# What PEFT makes transformers and Python say on these models. graft itself is silent.
PEFT_WARNS = [
    pytest.mark.filterwarnings(f"ignore:{start}")
    for start in (
        "`past_key_values` is deprecated:FutureWarning",
        "`is_gradient_checkpointing` is deprecated:FutureWarning",
        "fan_in_fan_out is set to False but:UserWarning",
        "Setting `save_embedding_layers` to `True`:UserWarning",
        "Model has `tie_word_embeddings=True` and a tied layer:UserWarning",
        r"Adapter 'default'. \d+ LoRA tensor.s. have invalid shape:UserWarning",
    )
]


def randomise(module: nn.Module, seed: int = 1) -> None:
    """Give everything that learns random values, so that no part is without effect."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            middle = 1.0 if "ia3" in name or "magnitude" in name else 0.0
            parameter.data = middle + 0.1 * torch.randn(parameter.shape, generator=dice)


def copy_weights(theirs: Any, ours: graft.PeftModel) -> None:
    """Give graft's model the weights of PEFT's, an encoder of virtual tokens included."""
    virtual = ours.adapter("default").virtual_tokens
    if virtual is not None and virtual.encoder is not None:
        state = theirs.prompt_encoder["default"].state_dict()
        # On an encoder-decoder PEFT makes twice as many rows, and uses the first half.
        state["embedding.weight"] = state["embedding.weight"][: virtual.num_virtual_tokens]
        virtual.encoder.load_state_dict(state)
    graft.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))


def make_batch(model: Model, rows: int = 2, tokens: int = 6) -> dict[str, Tensor]:
    """Rows without padding (which PEFT gets wrong with virtual tokens), and labels."""
    dice = torch.Generator().manual_seed(3)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=dice)

    ids = draw(3, VOCAB, rows, tokens)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.task is TaskType.QUESTION_ANS:
        batch["start_positions"] = draw(0, tokens, rows)
        batch["end_positions"] = draw(0, tokens, rows)
    elif model.task is TaskType.SEQ_CLS:
        batch["labels"] = draw(0, 3, rows)
    elif model.task is TaskType.TOKEN_CLS:
        batch["labels"] = draw(0, 3, rows, tokens)
    else:
        batch["labels"] = draw(3, VOCAB, rows, tokens)
    return batch


def outputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss and logits, without the columns of virtual tokens, which PEFT returns."""
    if _cache_refused(model):
        return _bert_with_prefix(model, batch)
    tokens = batch["input_ids"].shape[1]
    out = model(**batch)
    found = {} if out.loss is None else {"loss": out.loss}
    for name in ("logits", "start_logits", "end_logits"):
        value = out.get(name)
        if value is not None:
            per_token = value.ndim > 1 and value.shape[1] >= tokens
            found[name] = value[:, -tokens:] if per_token else value
    return found


def _cache_refused(model: Any) -> bool:
    """PEFT gives a prefix as `past_key_values`, and transformers renamed that argument."""
    is_prefix = model.active_peft_config.peft_type == "PREFIX_TUNING"
    is_theirs = isinstance(model, peft.PeftModel)
    return is_prefix and is_theirs and hasattr(model.get_base_model(), "bert")


def _bert_with_prefix(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT means to do: its own prefix as the cache of the encoder, then the head."""
    base, ids = model.get_base_model(), batch["input_ids"]
    count = model.active_peft_config.num_virtual_tokens
    mask = torch.cat([torch.ones(len(ids), count, dtype=torch.long), batch["attention_mask"]], 1)
    hidden = base.bert(ids, attention_mask=mask, cache=model.get_prompt(len(ids)))
    logits = base.classifier(hidden.pooler_output)
    return {"loss": nn.functional.cross_entropy(logits, batch["labels"]), "logits": logits}


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the copies that PEFT adds: of heads, and of an adapted embedding."""
    copies = (".original_module.", ".modules_to_save.", ".base_layer.weight")
    return {key: t for key, t in tensors.items() if not any(copy in key for copy in copies)}


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of everything that learns, by PEFT's keys; those of virtual tokens by the names
    of the parameters that make them."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = {name: p.grad for name, p in learning.items() if "original_module" not in name}
    assert all(grad is not None for grad in grads.values())
    if not model.active_peft_config.is_prompt_learning:
        library = peft if isinstance(model, peft.PeftModel) else graft
        every = {**model.state_dict(), **grads}
        return own_tensors(library.get_peft_model_state_dict(model, every))
    found = {}
    for name, grad in grads.items():
        if "classifier" in name:
            name = name.replace(".modules_to_save.default", "")
            name = name.replace("adapters.default.tree.", "base_model.")
        else:
            name = re.sub(r".*(embedding|mlp_head|lstm_head|transform)\b", r"\1", name)
            name = re.sub(r".*prompt_embeddings", "embedding.weight", name)
        found[name] = grad
    return found


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same names, and values that differ by `TOLERANCE` at most."""
    assert set(ours) == set(theirs)
    errors = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, wrong
