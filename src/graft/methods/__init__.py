"""The methods. A new one is a file here and a line in `METHODS`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from graft.config import PeftConfig, PeftType
from graft.errors import ConfigError, did_you_mean
from graft.methods.affine import Affine
from graft.methods.base import (
    BaseShape,
    Layer,
    LayerAdapter,
    PrefixAdapter,
    PromptAdapter,
    VirtualTokens,
)
from graft.methods.bitfit import BitFit, BitFitConfig
from graft.methods.combination import Combination
from graft.methods.ia3 import IA3, IA3Config
from graft.methods.lora import Lora, LoraConfig
from graft.methods.p_tuning import (
    PromptEncoder,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
    PTuning,
)
from graft.methods.prefix_tuning import PrefixEncoder, PrefixTuning, PrefixTuningConfig
from graft.methods.prompt_tuning import (
    PromptLearningConfig,
    PromptTuning,
    PromptTuningConfig,
    PromptTuningInit,
)

__all__ = [
    "IA3",
    "METHODS",
    "Affine",
    "BaseShape",
    "BitFit",
    "BitFitConfig",
    "Combination",
    "IA3Config",
    "Layer",
    "LayerAdapter",
    "Lora",
    "LoraConfig",
    "PTuning",
    "PeftConfig",
    "PrefixAdapter",
    "PrefixEncoder",
    "PrefixTuning",
    "PrefixTuningConfig",
    "PromptAdapter",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuning",
    "PromptTuningConfig",
    "PromptTuningInit",
    "VirtualTokens",
    "make_config",
    "method_names",
]

METHODS: dict[PeftType, type[LayerAdapter] | type[VirtualTokens]] = {
    PeftType.PROMPT_TUNING: PromptTuning,
    PeftType.P_TUNING: PTuning,
    PeftType.PREFIX_TUNING: PrefixTuning,
    PeftType.LORA: Lora,
    PeftType.IA3: IA3,
    PeftType.BITFIT: BitFit,
}


def method_names() -> list[str]:
    """The names of the methods in run files: `lora`, `prompt_tuning`, ..."""
    return [kind.value.lower() for kind in METHODS]


def make_config(method: str, **values: Any) -> PeftConfig:
    """The config of the method called `method` in run files.

    Raises:
        ConfigError: For a method or field that does not exist, with the nearest names.
    """
    names = {kind.value.lower(): kind for kind in METHODS}
    key = str(method).lower().replace("-", "_")
    if key not in names:
        raise ConfigError(f"There is no method {method!r}.{did_you_mean(key, names)}")
    config_class = METHODS[names[key]].config_class
    valid = [f.name for f in fields(config_class)]
    for name in values:
        if name not in valid:
            raise ConfigError(f"{key} has no setting {name!r}.{did_you_mean(name, valid)}")
    return config_class(**values)
