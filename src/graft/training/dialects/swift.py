"""ms-swift's settings in graft's words."""

from __future__ import annotations

import re
from typing import Any

from graft.training.dialects.reasons import (
    IN_MEMORY,
    NO_CODE,
    NO_QUANTISATION,
    NO_TRACKER,
    NO_TUNER,
    ONE_DEVICE,
    SHUFFLED,
    SPEED,
    TEMPLATE,
)
from graft.training.dialects.rules import (
    ADAPTER,
    Here,
    Rule,
    as_list,
    each,
    equal,
    fraction,
    lost,
    one_or_many,
    packed,
    renamed,
)

__all__ = ["SWIFT"]

_COUNT = "give a share below 1, such as `data.eval_fraction: 0.05`."
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")


def _tuner(value: Any) -> Here:
    return Here({f"{ADAPTER}.method": "lora"}) if value == "lora" else Here(lost=NO_TUNER)


def _data(section: str) -> Rule:
    def rule(value: Any) -> Here:
        if not value:
            return Here(equal="it is not set")
        # A list is written with spaces on the command line, and "#500" takes 500 rows.
        names = [name for part in as_list(value) for name in str(part).split()]
        return Here({section: one_or_many([_place(name) for name in names])})

    return rule


def _place(name: str) -> str:
    """A plain `ORG/NAME` is one of ModelScope's there."""
    hub, double, rest = name.partition("::")
    if double:
        return f"{hub.lower()}:{rest}"
    return f"ms:{name}" if _HUB_ID.match(name.partition("#")[0].partition(":")[0]) else name


def _dtype(value: Any) -> Here:
    if value in ("bfloat16", "bf16", "float32"):
        return Here({"train.bf16": value != "float32"})
    return Here(lost="graft holds the base model in bfloat16 or float32: see `train.bf16`.")


def _loss_scale(value: Any) -> Here:
    if value == "default":
        return Here(equal="graft learns the answers")
    if value == "all":
        return Here({"data.train_on": "all"})
    return Here(lost="`data.train_on` is `response` or `all`; a turn is left out by `loss: false`.")


def _too_long(value: Any) -> Here:
    if value == "right":
        return Here(equal="longer rows are cut at their end")
    return Here(lost="longer rows are cut at their end; `graft data check` counts them.")


def _shuffle(value: Any) -> Here:
    return Here(equal="so does graft") if value else Here(lost=SHUFFLED)


SWIFT: dict[str, Rule] = {
    "model": renamed("base_model"),
    "model_id_or_path": renamed("base_model"),
    "model_revision": renamed("revision"),
    "model_type": equal("graft reads the structure of the model"),
    "adapters": lost("graft starts a new adapter; `--resume` goes on with its own run."),
    "task_type": renamed("task_type", change=lambda value: str(value).upper()),
    "torch_dtype": _dtype,
    "attn_impl": lost(SPEED),
    "new_special_tokens": lost("graft adds no tokens."),
    "rope_scaling": lost("set it in the base model's config.json."),
    **each("device_map max_memory", lost(ONE_DEVICE)),
    "num_labels": equal("graft counts the labels"),
    **each(
        "quant_method quant_bits hqq_axis bnb_4bit_compute_dtype bnb_4bit_quant_type "
        "bnb_4bit_use_double_quant bnb_4bit_quant_storage",
        lost(NO_QUANTISATION),
    ),
    "trust_remote_code": lost(NO_CODE),
    "use_hf": lost("the hub stands in the name: `hf:ORG/NAME` or `ms:ORG/NAME`."),
    "hub_token": lost("log in with the hub's own client; a run file holds no secrets."),
    **each("tuner_type train_type sft_type", _tuner),
    "tuner_backend": equal("the adapter is saved as PEFT saves it"),
    "lora_rank": renamed(f"{ADAPTER}.r"),
    "target_regex": renamed(f"{ADAPTER}.target_modules"),
    "init_weights": renamed(f"{ADAPTER}.init_lora_weights"),
    "lora_dtype": equal("an adapter learns in float32"),
    "lorap_lr_ratio": lost("A and B have one learning rate here."),
    **each(
        "freeze_parameters freeze_parameters_regex freeze_parameters_ratio "
        "trainable_parameters trainable_parameters_regex freeze_llm freeze_vit freeze_aligner "
        "adalora_target_r adalora_init_r vera_rank reft_rank boft_block_size "
        "fourier_n_frequency llamapro_num_new_blocks adapter_length adapter_act",
        lost(NO_TUNER),
    ),
    **each("use_galore galore_rank lisa_activated_layers", lost(NO_TUNER)),
    "dataset": _data("data.train"),
    "val_dataset": _data("data.eval"),
    "cached_dataset": lost("graft keeps tokenised rows in its own cache (`data.use_cache`)."),
    "split_dataset_ratio": fraction("data.eval_fraction", _COUNT),
    "interleave_prob": lost("give the entries of `data.train` a `weight` each."),
    "loss_scale": _loss_scale,
    "truncation_strategy": _too_long,
    **each(
        "template use_chat_template response_prefix enable_thinking", lost(TEMPLATE, off=(True,))
    ),
    "template_backend": lost(TEMPLATE),
    "agent_template": lost("tools are rendered by the chat template."),
    "system": lost("put the system prompt into the rows (`system`, or a system turn)."),
    "model_name": lost("replace {{NAME}} in the rows yourself."),
    "model_author": lost("replace {{AUTHOR}} in the rows yourself."),
    "custom_dataset_info": renamed("data.dataset_dir"),
    **each("packing padding_free", packed),
    **each("packing_length packing_num_proc packing_strategy padding_side", lost(SPEED)),
    **each("dataset_shuffle train_dataloader_shuffle", _shuffle),
    **each(
        "dataset_num_proc load_from_cache_file lazy_tokenize strict download_mode "
        "val_dataset_shuffle shuffle_buffer_size load_args load_data_args add_version "
        "create_checkpoint_symlink ignore_args_error",
        equal(IN_MEMORY),
    ),
    **each(
        "max_new_tokens temperature top_k top_p repetition_penalty num_beams",
        equal("it is about answering: see `graft generate --help`"),
    ),
    "max_model_len": renamed("data.max_length"),
    **each(
        "sequence_parallel_size deepspeed_autotp_size zero_hpz_partition_size", lost(ONE_DEVICE)
    ),
    **each("external_plugins custom_register_path", lost("graft loads no plugins.")),
    **each("swanlab_project swanlab_token swanlab_exp_name swanlab_mode", lost(NO_TRACKER)),
}
