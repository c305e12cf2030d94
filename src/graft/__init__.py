"""Adapt a frozen pretrained transformer by training a few added parameters.

The names are PEFT's, with PEFT's meaning, where PEFT has them. Each is imported when it is first
used, so that `import graft` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.adapt.functional import (
        get_peft_model_state_dict,
        inject_adapter_in_model,
        prepare_model_for_kbit_training,
        set_peft_model_state_dict,
    )
    from graft.adapt.model import PeftModel, get_peft_model
    from graft.adapt.status import get_layer_status, get_model_status
    from graft.auto import (
        AutoPeftModel,
        AutoPeftModelForCausalLM,
        AutoPeftModelForFeatureExtraction,
        AutoPeftModelForQuestionAnswering,
        AutoPeftModelForSeq2SeqLM,
        AutoPeftModelForSequenceClassification,
        AutoPeftModelForTokenClassification,
    )
    from graft.comparison.study import compare
    from graft.config import PeftConfig, PeftType, TaskType
    from graft.errors import GraftError
    from graft.inspection import inspect
    from graft.methods import (
        BitFitConfig,
        IA3Config,
        LoraConfig,
        PrefixTuningConfig,
        PromptEncoderConfig,
        PromptEncoderReparameterizationType,
        PromptLearningConfig,
        PromptTuningConfig,
        PromptTuningInit,
    )
    from graft.planning.plan import plan
    from graft.training.config import TrainConfig
    from graft.training.learner import Run
    from graft.training.run import train

_HOMES = {
    "graft.adapt.functional": (
        "get_peft_model_state_dict",
        "inject_adapter_in_model",
        "prepare_model_for_kbit_training",
        "set_peft_model_state_dict",
    ),
    "graft.adapt.model": ("PeftModel", "get_peft_model"),
    "graft.adapt.status": ("get_layer_status", "get_model_status"),
    "graft.auto": (
        "AutoPeftModel",
        "AutoPeftModelForCausalLM",
        "AutoPeftModelForFeatureExtraction",
        "AutoPeftModelForQuestionAnswering",
        "AutoPeftModelForSeq2SeqLM",
        "AutoPeftModelForSequenceClassification",
        "AutoPeftModelForTokenClassification",
    ),
    "graft.comparison.study": ("compare",),
    "graft.config": ("PeftType", "TaskType"),
    "graft.errors": ("GraftError",),
    "graft.inspection": ("inspect",),
    "graft.methods": (
        "BitFitConfig",
        "IA3Config",
        "LoraConfig",
        "PeftConfig",  # with all its kinds, so that it reads any of them
        "PrefixTuningConfig",
        "PromptEncoderConfig",
        "PromptEncoderReparameterizationType",
        "PromptLearningConfig",
        "PromptTuningConfig",
        "PromptTuningInit",
    ),
    "graft.planning.plan": ("plan",),
    "graft.training.config": ("TrainConfig",),
    "graft.training.learner": ("Run",),
    "graft.training.run": ("train",),
}
# PEFT has a class for each task; here one class serves them all.
_SAME_CLASS = (
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
)
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BitFitConfig",
    "GraftError",
    "IA3Config",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "Run",
    "TaskType",
    "TrainConfig",
    "compare",
    "get_layer_status",
    "get_model_status",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "inspect",
    "plan",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _SAME_CLASS:
        name = "PeftModel"
    if name not in _HOME:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
