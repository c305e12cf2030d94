"""A seventh method, to show what one takes: a config, a class, and a line in `METHODS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.methods import Affine, Layer, LayerAdapter
from graft.methods.base import adapter_dtype
from graft.methods.targeting import TargetedConfig

__all__ = ["Gain", "GainConfig"]


@dataclass(kw_only=True)
class GainConfig(TargetedConfig):
    """`y = (1 + g) * (W x + b)` with one number g per layer trained."""

    peft_type: ClassVar[str] = "GAIN"


class Gain(LayerAdapter):
    """The number g of one layer."""

    config_class = GainConfig
    learning_rate = 1e-2
    default_roles = frozenset({"query", "value", "qkv", "down"})
    disk_names: ClassVar[dict[str, str]] = {"gain": "gain"}

    def __init__(self, config: GainConfig, layer: Layer) -> None:
        super().__init__(config, layer)
        dtype = adapter_dtype(layer.weight.dtype)
        self.gain = nn.Parameter(torch.zeros(1, dtype=dtype, device=layer.weight.device))

    def affine(self, layer: Layer) -> Affine:
        return Affine(out_scale=(1 + self.gain).expand(layer.out_features))
