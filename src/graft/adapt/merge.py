"""Folding adapters into the base model's weights, and taking them out exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from graft.errors import MergeError

if TYPE_CHECKING:
    from graft.adapt.attached import AttachedAdapters
    from graft.adapt.model import PeftModel

__all__ = ["merge", "merge_and_unload", "refuse_unmergeable", "unmerge"]


def refuse_unmergeable(model: AttachedAdapters, names: Sequence[str]) -> None:
    """Raise a MergeError for adapters that no weight of the base model can hold."""
    for name in names:
        adapter = model.adapter(name)
        if adapter.virtual_tokens is not None:
            kind = adapter.config.peft_type
            raise MergeError(
                f"{name!r} is {kind}: virtual tokens are inputs, not weights, and cannot be "
                "merged. Keep the adapter beside the base model and load both."
            )


def merge(model: AttachedAdapters, names: Sequence[str]) -> None:
    """Fold the adapters `names` into the weights, in this order; what is merged already stays."""
    refuse_unmergeable(model, names)
    for site in model.sites.values():
        for name in names:
            if name in site.adapters and name not in site.merged:
                site.merge(name)


def unmerge(model: AttachedAdapters) -> None:
    """Restore every layer's own weight and bias bit for bit."""
    for site in model.sites.values():
        site.unmerge()


def merge_and_unload(model: PeftModel, names: Sequence[str]) -> nn.Module:
    """Fold the adapters `names` in for good and return the base model without hooks."""
    refuse_unmergeable(model, names)
    for path, site in model.sites.items():
        for name in names:
            if site.adds_bias(name):
                raise MergeError(
                    f"{name!r} gives {path} a bias, and a {type(model.base_model).__name__} has no "
                    "place for one: a saved copy would lose it. Keep the adapter beside the base "
                    "model and load both."
                )
    merge(model, names)
    for site in model.sites.values():
        site.detach()
    for saved in model.saved.values():
        saved.detach()
        chosen = [name for name in names if name in saved.copies]
        if chosen:
            _take_over(saved.module, saved.copies[chosen[-1]])
    model.sites.clear()
    model.saved.clear()
    model.adapters.clear()
    model.set_adapter([])
    return model.unload()


def _take_over(module: nn.Module, trained: nn.Module) -> None:
    """Give `module` the values of its copy, in new parameters: what is tied to it stays."""
    for path, own in list(module.named_parameters()):
        owner, _, name = path.rpartition(".")
        new = nn.Parameter(torch.empty_like(own), requires_grad=False)
        setattr(module.get_submodule(owner), name, new)
    module.load_state_dict(trained.state_dict())
