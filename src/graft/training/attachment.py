"""Adapters put on a base model that is loaded, each as its own seed makes it.

What an adapter starts from follows from its config, its seed and the base model: not from other
adapters, and not from when it is attached.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import set_seed

from graft.adapt import PeftModel
from graft.config import PeftConfig

__all__ = ["attach"]


def attach(model: PeftModel, config: PeftConfig, seed: int, name: str = "default") -> None:
    """Put one more adapter on a base model.

    Args:
        model: The base model with the adapters that it has.
        config: The adapter's.
        seed: Decides all that is random in it, a new head included.
        name: Its name.
    """
    set_seed(seed)
    model.add_adapter(name, config)
    base: Any = model.base_model
    new = getattr(base, "new_parameters", ())
    with torch.no_grad():
        for path, head in model.adapter(name).saved.items():
            for own, module in head.named_modules():
                place = f"{path}.{own}" if own else path
                if any(f"{place}.{n}" in new for n, _ in module.named_parameters(recurse=False)):
                    base._init_weights(module)  # the numbers it came with are another seed's
