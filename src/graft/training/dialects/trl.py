"""TRL's settings in graft's words."""

from __future__ import annotations

from typing import Any

from graft.training.dialects.reasons import (
    IN_MEMORY,
    LOSS,
    NO_CODE,
    NO_QUANTISATION,
    SPEED,
    TEMPLATE,
)
from graft.training.dialects.rules import (
    ADAPTER,
    Here,
    Rule,
    each,
    equal,
    fraction,
    lost,
    packed,
    renamed,
)

__all__ = ["TRL"]


def _dtype(value: Any) -> Here:
    if value in ("bfloat16", "float32"):
        return Here({"train.bf16": value == "bfloat16"})
    if value in ("auto", None):
        return Here(equal="graft decides by the hardware")
    return Here(lost="graft holds the base model in bfloat16 or float32: see `train.bf16`.")


def _targets(value: Any) -> Here:
    names = value if isinstance(value, str) else list(value)
    whole = names in ("all-linear", ["all-linear"])
    return Here({f"{ADAPTER}.target_modules": "all-linear" if whole else names})


def _on_hub(value: Any) -> Here:
    name = str(value)
    return Here({"data.train": f"hf:{name}" if name.count("/") == 1 and "." not in name else name})


def _answers_only(value: Any) -> Here:
    if value in (True, None):
        return Here(equal="graft learns the answers only: `data.train_on: response`")
    return Here({"data.train_on": "all"})


TRL: dict[str, Rule] = {
    "model_name_or_path": renamed("base_model"),
    "model_revision": renamed("revision"),
    **each("dtype torch_dtype", _dtype),
    "attn_implementation": lost(SPEED),
    **each("load_in_8bit load_in_4bit", lost(NO_QUANTISATION)),
    **each(
        "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
        lost(NO_QUANTISATION, off=("nf4",)),
    ),
    "trust_remote_code": lost(NO_CODE),
    "model_init_kwargs": lost("graft loads the base model as its config.json says."),
    "use_peft": renamed(f"{ADAPTER}.method", values={True: "lora"}),
    "lora_r": renamed(f"{ADAPTER}.r"),
    "lora_target_modules": _targets,
    "lora_target_parameters": renamed(f"{ADAPTER}.target_parameters"),
    "lora_modules_to_save": renamed(f"{ADAPTER}.modules_to_save"),
    "lora_task_type": renamed("task_type"),
    "dataset_name": _on_hub,
    "eval_dataset": renamed("data.eval"),
    "dataset_config": lost("it is `subset` of an entry of `data.train`."),
    "dataset_train_split": lost("it is `split` of an entry of `data.train`.", off=("train",)),
    "dataset_test_split": lost("it is `split` of an entry of `data.eval`.", off=("test",)),
    "dataset_text_field": renamed("data.columns", change=lambda value: {"text": value}),
    "test_split_size": fraction("data.eval_fraction", "give a share below 1."),
    "max_seq_length": renamed("data.max_length"),
    "max_seq_len": renamed("data.max_length"),
    "truncation_mode": lost("longer rows are cut at their end.", off=("keep_start",)),
    **each("completion_only_loss assistant_only_loss train_on_responses_only", _answers_only),
    "chat_template_path": lost(TEMPLATE),
    **each("eos_token pad_token", lost("graft takes the tokenizer's own.")),
    **each("packing eval_packing padding_free", packed),
    **each("packing_strategy pad_to_multiple_of activation_offloading", lost(SPEED)),
    "loss_type": lost(LOSS, off=("nll",)),
    "router_aux_loss_coef": lost(LOSS),
    "shuffle_dataset": equal("graft draws the rows in a new random order each epoch"),
    **each("dataset_num_proc dataset_kwargs", equal(IN_MEMORY)),
    **each("dataset_streaming", lost("graft reads the rows into memory, and caches them.")),
    "ignore_bias_buffers": equal("graft trains on one device"),
}
