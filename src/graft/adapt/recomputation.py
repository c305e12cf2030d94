"""Gradient checkpointing: layers are computed again as they were computed in the forward.

All of this goes by names of transformers 5 that are not public;
`tests/conformance/test_checkpointing.py` holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.adapt.routing import Router

__all__ = ["kept_under_checkpointing", "route_recomputation"]


def route_recomputation(model: nn.Module, router: Router) -> None:
    """Have the layers of `model` recomputed under the routing of their forward.

    However checkpointing was turned on: without it, adapters would be missing the second time, and
    gradients wrong without a word.
    """
    for module in model.modules():
        own: Any = getattr(module, "_gradient_checkpointing_func", None)
        given = own.keywords if isinstance(own, partial) else {}
        if own is not None and given.get("context_fn") != router.checkpoint_contexts:
            options = {"use_reentrant": False, "context_fn": router.checkpoint_contexts}
            module._gradient_checkpointing_func = partial(own, **options)  # pyright: ignore


@contextmanager
def kept_under_checkpointing(model: nn.Module) -> Iterator[None]:
    """Let checkpointed layers keep, inside the block, the cache they are given.

    transformers takes it away, as a layer that writes would write twice; ours is read only. A
    private name of transformers 5: `tests/conformance/test_checkpointing.py` holds it. GPT-2
    takes it away before its layers see it, by a flag of its own beside theirs.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    flagged = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    above: list[Any] = [m for m in flagged if m not in layers and _holds_layers(m)]
    for layer in layers:
        layer._can_checkpoint_with_cache = True
    for module in above:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            del layer._can_checkpoint_with_cache
        for module in above:
            module.gradient_checkpointing = True


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(m, GradientCheckpointingLayer) for m in module.modules())
