"""The public names: pinned, importable, and PEFT's among them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import graft
from conformance.families import FAMILIES
from graft import LoraConfig, get_peft_model

# PEFT's names that code for these methods uses, and why a few are absent.
OF_PEFT = [
    "get_peft_model", "PeftModel", "PeftModelForCausalLM", "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification", "PeftModelForTokenClassification",
    "PeftModelForQuestionAnswering", "PeftModelForFeatureExtraction", "AutoPeftModel",
    "AutoPeftModelForCausalLM", "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification", "AutoPeftModelForTokenClassification",
    "AutoPeftModelForQuestionAnswering", "AutoPeftModelForFeatureExtraction", "PeftConfig",
    "PromptLearningConfig", "LoraConfig", "IA3Config", "PromptTuningConfig",
    "PromptEncoderConfig", "PrefixTuningConfig", "TaskType", "PeftType", "PromptTuningInit",
    "PromptEncoderReparameterizationType", "PromptEmbedding", "PromptEncoder", "PrefixEncoder",
    "get_peft_model_state_dict", "set_peft_model_state_dict", "inject_adapter_in_model",
    "prepare_model_for_kbit_training", "get_layer_status", "get_model_status",
]  # fmt: skip
ABSENT = {
    "PromptEmbedding": "virtual tokens without an encoder are a parameter of their adapter",
    "PromptEncoder": "made from a config and the shape of a base model: graft.methods has it",
    "PrefixEncoder": "made from a config and the shape of a base model: graft.methods has it",
}
OF_THE_MODEL = [
    "from_pretrained", "save_pretrained", "push_to_hub", "add_adapter", "load_adapter",
    "set_adapter", "delete_adapter", "add_weighted_adapter", "merge_adapter", "unmerge_adapter",
    "merge_and_unload", "unload", "disable_adapter", "disable_adapter_layers",
    "enable_adapter_layers", "generate", "get_base_model", "peft_config", "active_peft_config",
    "active_adapter", "active_adapters", "peft_type", "set_requires_grad",
    "targeted_module_names", "get_nb_trainable_parameters", "print_trainable_parameters",
    "get_prompt", "create_or_update_model_card", "gradient_checkpointing_enable",
]  # fmt: skip
OF_THE_BASE = ["base_model", "config", "get_input_embeddings", "enable_input_require_grads"]
OF_A_CONFIG = [
    "to_dict", "save_pretrained", "from_pretrained", "from_json_file", "from_peft_type",
    "peft_type", "task_type", "inference_mode", "peft_version", "is_prompt_learning",
    "revision", "base_model_name_or_path",
]  # fmt: skip


def test_names_are_sorted_and_each_once():
    assert graft.__all__ == sorted(set(graft.__all__))
    assert dir(graft) == graft.__all__


@pytest.mark.parametrize("name", graft.__all__)
def test_every_name_can_be_imported(name):
    assert getattr(graft, name) is not None


def test_no_other_name_is_there():
    with pytest.raises(AttributeError, match="module 'graft' has no attribute 'LoraConfg'"):
        _ = graft.LoraConfg


@pytest.mark.parametrize("name", OF_PEFT)
def test_names_of_peft_are_there_or_absent_for_a_reason(name):
    assert (name in graft.__all__) != (name in ABSENT)


def test_one_class_stands_for_pefts_classes_of_tasks():
    names = [name for name in graft.__all__ if name.startswith("PeftModelFor")]
    assert len(names) == 6
    assert all(getattr(graft, name) is graft.PeftModel for name in names)


def test_a_model_has_the_names_of_pefts():
    model = get_peft_model(FAMILIES[0].model(), LoraConfig())
    assert [name for name in OF_THE_MODEL if not hasattr(type(model), name)] == []
    assert [name for name in OF_THE_BASE if not hasattr(model, name)] == []
    config = model.peft_config["default"]
    assert [name for name in OF_A_CONFIG if not hasattr(config, name)] == []


def test_parameters_carry_pefts_names():
    base = FAMILIES[0]
    for config, wanted in (
        (LoraConfig(use_dora=True), {"lora_A", "lora_B", "lora_magnitude_vector"}),
        (LoraConfig(target_modules=["embed_tokens"]), {"lora_embedding_A", "lora_embedding_B"}),
        (graft.IA3Config(), {"ia3_l"}),
        (
            graft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            {"prompt_embeddings"},
        ),
    ):
        model = get_peft_model(base.model(), config)
        learning = [name for name, p in model.named_parameters() if p.requires_grad]
        assert {name.rpartition(".")[2] for name in learning} == wanted


def in_a_new_process(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_graft_loads_no_torch():
    code = "import sys, graft; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert in_a_new_process(code) == ["False", "False"]


def test_the_config_alone_reads_every_kind():
    read = "PeftConfig.from_dict({'peft_type': 'IA3'})"
    code = f"from graft import PeftConfig; print(type({read}).__name__)"
    assert in_a_new_process(code) == ["IA3Config"]
