"""`AutoPeftModelFor...`: an adapter's folder or hub id -> its base model with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from graft.adapt.model import PeftModel
from graft.config import PeftConfig, TaskType
from graft.download import adapter_folder
from graft.errors import CheckpointError, ConfigError, GraftError, TargetError
from graft.hub import load_model, saved_label_names

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
]


class AutoPeftModel:
    """Loads a base model and the adapter on it; the adapter's config says which."""

    task_type: ClassVar[TaskType | None] = None

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        base_model: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        revision: str | None = None,
        subfolder: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
    ) -> PeftModel:
        """The base model with the adapter at `model_id`.

        Args:
            model_id: Folder of an adapter, or its id on a hub.
            adapter_name: The name it gets here.
            is_trainable: Whether it shall go on learning.
            base_model: The base model, where the config's name for it does not lead there.
            dtype: Of the base model's weights; None takes that of its files.
            torch_dtype: The older name of `dtype`.
            revision: Of the adapter, on its hub; so are the next three.
            subfolder: Folder of the adapter in the repository.
            cache_dir: Where downloads are kept.
            token: For private repositories.

        Raises:
            ConfigError: No base model named, or an adapter of another task.
            CheckpointError: No adapter there, or one that does not fit.
        """
        folder = adapter_folder(model_id, revision, subfolder, cache_dir, token)
        config = PeftConfig.from_pretrained(folder)
        base = base_model or config.base_model_name_or_path
        if not base:
            raise CheckpointError(f"{model_id} does not name its base model; give base_model=.")
        task = cls.task_type or config.task_type
        if task is None:
            raise ConfigError(
                f"{model_id} does not say its task; use AutoPeftModelForCausalLM or such."
            )
        if config.task_type not in (None, task):
            raise ConfigError(f"{model_id} is an adapter for {config.task_type}, not for {task}.")
        labels = saved_label_names(folder)
        base_revision = None if base_model else config.revision
        try:
            model = load_model(
                base, task, label_names=labels, dtype=dtype or torch_dtype, revision=base_revision
            )
        except GraftError as error:
            if base_model:
                raise
            hint = f"{model_id} names it as its base model; give base_model= (--base-model)"
            raise type(error)(f"{error} {hint} where that has moved.") from None
        try:
            return PeftModel.from_pretrained(model, folder, adapter_name, is_trainable)
        except TargetError as error:
            raise CheckpointError(f"{model_id} does not fit {base}: {error}") from None


class AutoPeftModelForCausalLM(AutoPeftModel):
    task_type = TaskType.CAUSAL_LM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    task_type = TaskType.SEQ_2_SEQ_LM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    task_type = TaskType.SEQ_CLS


class AutoPeftModelForTokenClassification(AutoPeftModel):
    task_type = TaskType.TOKEN_CLS


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    task_type = TaskType.QUESTION_ANS


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    task_type = TaskType.FEATURE_EXTRACTION
