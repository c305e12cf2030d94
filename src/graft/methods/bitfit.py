"""BitFit: train the bias terms and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from graft.config import PeftConfig, PeftType
from graft.errors import ConfigError
from graft.methods.affine import Affine
from graft.methods.base import Layer, LayerAdapter, new_parameter
from graft.methods.targeting import TargetedConfig

__all__ = ["BitFit", "BitFitConfig", "is_bias_only"]

# PEFT has no BitFit. A LoRA that targets nothing and trains every bias is the same thing to it.
_NO_TARGET = "dummy-target-modules"
_KEY_PREFIX = "base_model.model."


def is_bias_only(raw: dict[str, Any]) -> bool:
    """Whether the LoRA config `raw` targets no layer, so that only biases are left in it."""
    return raw.get("target_modules") == _NO_TARGET


@dataclass(kw_only=True)
class BitFitConfig(TargetedConfig):
    """BitFit: `y = W x + b` with b trained.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
    Masked Language-models", section 2.

    `target_modules=None` takes every layer that has a bias, norms included. In a model without
    biases (Llama) it takes all linear layers and gives them a bias that starts at zero.

    On disk: PEFT's LoRA with `bias="all"` and no target where the model has the biases, PEFT's
    BEFT where they are new; PEFT loads both.

    Attributes:
        new_biases: Whether the biases are new ones; filled in when attached.
    """

    peft_type: ClassVar[PeftType] = PeftType.BITFIT
    private_fields: ClassVar[frozenset[str]] = frozenset({"new_biases"})
    inert_fields: ClassVar[dict[str, Any]] = {"init_weights": True}  # BEFT's

    new_biases: bool = False

    @classmethod
    def claims(cls, raw: dict[str, Any]) -> bool:
        return raw.get("peft_type") in ("BITFIT", "BEFT") or (
            raw.get("peft_type") == "LORA" and is_bias_only(raw)
        )

    def to_dict(self) -> dict[str, Any]:
        shared = {name: value for name, value in super().to_dict().items() if name in _SHARED}
        if self.new_biases:
            own: dict[str, Any] = {"peft_type": "BEFT", "target_modules": self.target_modules}
        else:
            own = {"peft_type": "LORA", "r": 1, "target_modules": _NO_TARGET, "bias": "all"}
        return {**own, **shared, **self.kept}

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> PeftConfig:
        if raw["peft_type"] != "LORA":
            return super()._read(raw).changed(new_biases=raw["peft_type"] == "BEFT")
        # The tensors say which biases: see `located`. The rest is about matrices that are not
        # there; LoRA's own config knows which of these keys exist.
        rest = PeftConfig.class_of(PeftType.LORA)._read(raw).to_dict()
        config = cls(**{name: raw[name] for name in _SHARED if name in raw})
        config.kept = {name: raw[name] for name in rest if name in raw and name not in _SHARED}
        return config

    @classmethod
    def acts(cls, key: str, value: Any) -> bool:
        return False

    def located(self, keys: Iterable[str]) -> Self:
        """The config with the layers whose biases a checkpoint holds as its targets."""
        if self.target_modules:
            return self
        paths = [
            key.removeprefix(_KEY_PREFIX).rpartition(".")[0]
            for key in keys
            if key.endswith((".bias", ".beft_bias"))
        ]
        saved = self.modules_to_save or []
        targets = [path for path in paths if not any(name in path.split(".") for name in saved)]
        return self.changed(target_modules=targets)


_SHARED = frozenset(PeftConfig.defaults())


class BitFit(LayerAdapter):
    """The bias of one layer, whole: `shift = bias - the base's own bias`; or a new one."""

    config_class = BitFitConfig
    learning_rate = 3e-3
    kinds = frozenset({"linear", "conv1d", "conv", "norm"})

    def __init__(self, config: BitFitConfig, layer: Layer) -> None:
        super().__init__(config, layer)
        if config.new_biases or layer.bias is None:
            self.beft_bias = new_parameter(layer, torch.zeros(1, layer.out_features))  # PEFT's
            self.disk_names = {"beft_bias": "beft_bias"}
        else:
            self.bias = new_parameter(layer, layer.bias)  # [O]
            self.disk_names = {"bias": "bias"}

    def affine(self, layer: Layer) -> Affine:
        own = layer.bias
        if "bias" in self.disk_names and own is not None:
            return Affine(shift=self.bias - own)
        return Affine(shift=self.beft_bias.flatten())

    @classmethod
    def resolved(
        cls, config: BitFitConfig, layers: Sequence[Layer], names: list[str]
    ) -> BitFitConfig:
        chosen = super().resolved(config, layers, names)
        bare = [layer.path for layer in layers if layer.bias is None]
        if bare and any(layer.weight.ndim == 1 for layer in layers):
            raise ConfigError(
                f"BitFit: {bare[0]} has no bias, while norms among the targets have one. Adapt "
                "either biases that are there or new ones on linear layers; name one kind in "
                "target_modules."
            )
        return chosen.changed(new_biases=config.new_biases or bool(bare))
