"""IA3: learned factors on keys, values and the input of the feed-forward's last layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.config import PeftType
from graft.errors import ConfigError
from graft.methods.affine import Affine
from graft.methods.base import Layer, LayerAdapter, matches_suffix, new_parameter
from graft.methods.combination import Combination
from graft.methods.targeting import TargetedConfig

__all__ = ["IA3", "IA3Config"]


@dataclass(kw_only=True)
class IA3Config(TargetedConfig):
    """IA3: `k = l_k * W_k x`, `v = l_v * W_v x`, and `W_2 (l_ff * h)` in the feed-forward.

    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning", section 3.3.

    Attributes:
        feedforward_modules: Suffixes of the targets whose input is scaled, or a regular expression
            that their whole path must match; the others' output is scaled. None: the targets that
            project back from the feed-forward.
        init_ia3_weights: True: ones, the identity. False: random (for tests).
    """

    peft_type: ClassVar[PeftType] = PeftType.IA3
    # PEFT's IA3Config has no such fields; the resolved target_modules say the same.
    private_fields: ClassVar[frozenset[str]] = frozenset({"layers_to_transform", "layers_pattern"})

    feedforward_modules: list[str] | str | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        forward = self.feedforward_modules
        if isinstance(forward, set | tuple):
            self.feedforward_modules = sorted(forward)
        elif isinstance(forward, str):
            try:
                re.compile(forward)
            except re.error as error:
                raise ConfigError(
                    f"feedforward_modules={forward!r} is not a regular expression: {error}."
                ) from None
        if isinstance(self.target_modules, list) and isinstance(self.feedforward_modules, list):
            strange = [n for n in self.feedforward_modules if n not in self.target_modules]
            if strange:
                raise ConfigError(
                    f"feedforward_modules must be among target_modules {self.target_modules}; "
                    f"{strange} are not."
                )


class IA3(LayerAdapter):
    """A vector that scales a layer's output, or its input in the feed-forward."""

    config_class = IA3Config
    learning_rate = 5e-3
    kinds = frozenset({"linear", "conv1d", "conv"})
    default_roles = frozenset({"key", "value", "qkv", "down"})

    def __init__(self, config: IA3Config, layer: Layer) -> None:
        super().__init__(config, layer)
        self.disk_names = {"ia3_l": "ia3_l"}
        self.feedforward = _is_feedforward(config, layer)
        shape = layer.factor_shape(inputs=self.feedforward)
        self.ia3_l = new_parameter(layer, torch.ones(shape))
        if not config.init_ia3_weights:
            nn.init.normal_(self.ia3_l)

    def affine(self, layer: Layer) -> Affine:
        factors = self.ia3_l.flatten()
        return Affine(in_scale=factors) if self.feedforward else Affine(out_scale=factors)

    @classmethod
    def resolved(cls, config: IA3Config, layers: Sequence[Layer], names: list[str]) -> IA3Config:
        chosen = super().resolved(config, layers, names)
        forward = {layer.path for layer in layers if _is_feedforward(config, layer)}
        said = config.feedforward_modules
        if said is not None:
            wanted = [said] if isinstance(said, str) else said
            if wanted and not forward:
                raise ConfigError(f"feedforward_modules={said!r} matches none of the targets.")
            return chosen
        return chosen.changed(
            feedforward_modules=[n for n in names if any(matches_suffix(p, [n]) for p in forward)]
        )

    @classmethod
    def combined(
        cls, layer: Layer, parts: Sequence[tuple[float, LayerAdapter]], how: Combination
    ) -> tuple[Affine, float]:
        """`1 + sum_i w_i (l_i - 1)`: an adapter that does not act here adds nothing."""
        if how.combination_type != "linear":
            raise ConfigError("IA3 adapters are combined with combination_type='linear'.")
        affines = [(weight, adapter.affine(layer)) for weight, adapter in parts]
        if len({affine.in_scale is None for _, affine in affines}) > 1:
            raise ConfigError(f"{layer.path} is a feed-forward target in some of these adapters.")
        total = 1.0
        for weight, affine in affines:
            factors = affine.out_scale if affine.in_scale is None else affine.in_scale
            assert factors is not None
            total = total + weight * (factors.float() - 1)
        if affines[0][1].in_scale is None:
            return Affine(out_scale=torch.as_tensor(total)), 0.0
        return Affine(in_scale=torch.as_tensor(total)), 0.0

    @classmethod
    def combined_config(
        cls, configs: Sequence[IA3Config], affines: Mapping[str, Affine]
    ) -> IA3Config:
        forward = [path for path, affine in affines.items() if affine.in_scale is not None]
        return configs[0].changed(feedforward_modules=forward)

    def assign(self, layer: Layer, affine: Affine) -> None:
        factors = affine.out_scale if affine.in_scale is None else affine.in_scale
        assert factors is not None
        with torch.no_grad():
            self.ia3_l.copy_(factors.view_as(self.ia3_l))


def _is_feedforward(config: IA3Config, layer: Layer) -> bool:
    modules = config.feedforward_modules
    if modules is None:
        return layer.role == "down"
    if isinstance(modules, str):
        return re.fullmatch(modules, layer.path) is not None
    return matches_suffix(layer.path, modules)
