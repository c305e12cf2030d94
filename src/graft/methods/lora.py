"""LoRA, with rank-stabilised scaling (rsLoRA) and weight decomposition (DoRA)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graft.config import PeftType
from graft.errors import ConfigError
from graft.methods.affine import Affine
from graft.methods.base import Layer, LayerAdapter, adapter_dtype
from graft.methods.bitfit import is_bias_only
from graft.methods.targeting import TargetedConfig

__all__ = ["Lora", "LoraConfig"]


@dataclass(kw_only=True)
class LoraConfig(TargetedConfig):
    """LoRA: `y = W x + (lora_alpha / r) * B A x` with a frozen W.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.

    Attributes:
        r: Rank of the update.
        lora_alpha: Numerator of the scaling.
        lora_dropout: Dropout on the input of A while training.
        use_rslora: Scale by `lora_alpha / sqrt(r)` (Kalajdzievski, "A Rank Stabilization Scaling
            Factor for Fine-Tuning with LoRA", eq. 4).
        use_dora: Learn each output's magnitude apart from its direction (Liu et al., "DoRA:
            Weight-Decomposed Low-Rank Adaptation", eq. 5).
        init_lora_weights: True: A uniform, B zero. "gaussian": A normal with deviation 1/r, B
            zero. False: both random, so that the adapter is not the identity (for tests).
        rank_pattern: Rank by path suffix or regular expression, where it is not `r`.
        alpha_pattern: The same for `lora_alpha`.
        bias: "none". Train biases with BitFit.
    """

    peft_type: ClassVar[PeftType] = PeftType.LORA
    inert_fields: ClassVar[dict[str, Any]] = {
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "trainable_token_indices": None,
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "velora_config": None,
        "alora_invocation_tokens": None,
        "use_qalora": False,
        "qalora_group_size": 16,
        "monteclora_config": None,
        "layer_replication": None,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "lora_bias": False,
        "target_parameters": None,
        "use_bdlora": None,
        "arrow_config": None,
        "kasa_config": None,
        "ensure_weight_tying": False,
    }

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("r", int, 1)
        self.require("lora_alpha", float)
        self.require("lora_dropout", float, 0)
        if self.lora_dropout >= 1:
            raise ConfigError(f"lora_dropout must be below 1, not {self.lora_dropout!r}.")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise ConfigError(
                f"init_lora_weights={self.init_lora_weights!r} is not supported. "
                "Valid: True, False, 'gaussian'."
            )
        if self.bias != "none":
            raise ConfigError(
                f"bias={self.bias!r} is not supported; add a BitFit adapter for biases."
            )

    @classmethod
    def claims(cls, raw: dict[str, Any]) -> bool:
        return super().claims(raw) and not is_bias_only(raw)

    def rank(self, path: str) -> int:
        """R at the layer `path`."""
        return _by_pattern(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """The factor of `B A x` at the layer `path`."""
        rank = self.rank(path)
        return _by_pattern(self.alpha_pattern, path, self.lora_alpha) / (
            math.sqrt(rank) if self.use_rslora else rank
        )


def _by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    # PEFT's rule: a key is a pattern for the end of the path, "^" pins it to the start.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


class Lora(LayerAdapter):
    """A low-rank update `scaling * B A` beside a frozen weight."""

    config_class = LoraConfig
    learning_rate = 2e-4
    default_roles = frozenset({"query", "value", "qkv"})

    def __init__(self, config: LoraConfig, layer: Layer) -> None:
        super().__init__(config, layer)
        self.scaling = config.scaling(layer.path)
        self.dropout = config.lora_dropout
        weight = layer.weight
        options: Any = {"dtype": adapter_dtype(weight.dtype), "device": weight.device}
        rank = config.rank(layer.path)
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, **options))  # [R, I]
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, **options))  # [O, R]
        self._initialise(config.init_lora_weights)
        self.register_parameter("lora_magnitude_vector", None)
        if config.use_dora:
            norm = self._norm(weight).to(options["dtype"])
            self.lora_magnitude_vector = nn.Parameter(norm)  # [O]

    def _initialise(self, how: bool | str) -> None:
        if how == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / len(self.lora_A))
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if how is False:
            nn.init.kaiming_uniform_(self.lora_B, a=math.sqrt(5))

    def _norm(self, weight: Tensor) -> Tensor:
        """||W + scaling * B A|| of every output, [O]; a constant to the gradient (DoRA, sec. 4.3)."""
        with torch.no_grad():
            wide = weight.to(self.lora_A.dtype)
            return torch.addmm(wide, self.lora_B, self.lora_A, alpha=self.scaling).norm(dim=1)

    def affine(self, layer: Layer) -> Affine:
        dropout = self.dropout if self.training else 0.0
        plain = Affine(A=self.lora_A, B=self.lora_B, scaling=self.scaling, dropout=dropout)
        if self.lora_magnitude_vector is None:
            return plain
        scale = self.lora_magnitude_vector / self._norm(layer.weight)  # [O]
        bias = layer.bias  # is not part of the decomposition: the shift undoes its scaling
        return Affine(
            out_scale=scale,
            A=self.lora_A,
            B=self.lora_B * scale[:, None],
            scaling=self.scaling,
            shift=None if bias is None else bias * (1 - scale),
            dropout=dropout,
        )

    @property
    def disk_names(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
        if self.lora_magnitude_vector is not None:
            names["lora_magnitude_vector"] = "lora_magnitude_vector"
        return names
