"""LLaMA-Factory's settings in graft's words."""

from __future__ import annotations

from typing import Any

from graft.training.dialects.reasons import (
    ADAMW,
    COUNTED,
    IN_MEMORY,
    LOSS,
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

__all__ = ["LLAMA_FACTORY"]

_TEXT_ONLY = "graft trains on text only."
_ONE_ADAPTER = "graft starts a new adapter; it goes on with one only by `--resume` of its own run."
_SUPERVISED = "graft learns from answers (sft) and from plain text (pt) only."


def _stage(value: Any) -> Here:
    if value == "sft":
        return Here(equal="graft learns from the answers of the rows")
    if value == "pt":
        return Here({"data.format": "text"})
    return Here(lost=_SUPERVISED)


def _tuner(value: Any) -> Here:
    return Here({f"{ADAPTER}.method": "lora"}) if value == "lora" else Here(lost=NO_TUNER)


def _targets(value: Any) -> Here:
    names = as_list(value)
    return Here({f"{ADAPTER}.target_modules": "all-linear" if names == ["all"] else names})


def _start(value: Any) -> Here:
    return Here({f"{ADAPTER}.init_lora_weights": "pissa"}) if value else Here(equal="so does graft")


def _checkpointing(value: Any) -> Here:
    return Here({"train.gradient_checkpointing": not value})


def _folder(value: Any) -> Here:
    if str(value).startswith(("REMOTE:", "ONLINE")):
        return Here(lost="name data sets of a hub as `hf:ORG/NAME` or `ms:ORG/NAME`.")
    return renamed("data.dataset_dir")(value)


def _mix(value: Any) -> Here:
    if value == "concat":
        return Here(equal="graft takes every row of every data set once an epoch")
    return Here(lost="give the entries of `data.train` a `weight` each to mix them unevenly.")


def _attention(value: Any) -> Here:
    if value in ("auto", "sdpa", "disabled", None):
        return Here(equal="transformers chooses the attention")
    return Here(lost=SPEED)


def _not_base(value: Any) -> Here:
    if value == "main":
        return Here(equal="it is the branch that is taken anyway")
    return renamed("revision")(value)


LLAMA_FACTORY: dict[str, Rule] = {
    # the model
    "model_name_or_path": renamed("base_model"),
    "model_revision": _not_base,
    "adapter_name_or_path": lost(_ONE_ADAPTER),
    "cache_dir": lost("set HF_HOME (or MODELSCOPE_CACHE) to move the cache."),
    "flash_attn": _attention,
    "rope_scaling": lost("set it in the base model's config.json."),
    **each(
        "quantization_method quantization_type double_quantization quantization_device_map",
        lost(NO_QUANTISATION, off=("bnb", "nf4", True)),
    ),
    "quantization_bit": lost(NO_QUANTISATION),
    **each(
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config "
        "split_special_tokens init_special_tokens",
        lost("graft adds no tokens; LoRA's `trainable_token_indices` trains rows that are there."),
    ),
    **each("use_fast_tokenizer low_cpu_mem_usage use_kv_cache", equal("graft does so anyway")),
    **each(
        "infer_backend infer_dtype offload_folder", equal("it is about answering, not training")
    ),
    **each(
        "use_unsloth use_unsloth_gc enable_liger_kernel use_reentrant_gc upcast_layernorm "
        "upcast_lmhead_output use_v1_kernels print_param_status shift_attn mixture_of_depths "
        "use_kt device_map",
        lost(SPEED),
    ),
    "moe_aux_loss_coef": lost(LOSS),
    "trust_remote_code": lost(NO_CODE),
    **each(
        "hf_hub_token ms_hub_token om_hub_token",
        lost("set HF_TOKEN (or log in with the hub's client); a run file holds no secrets."),
    ),
    "train_from_scratch": lost(NO_TUNER),
    "disable_gradient_checkpointing": _checkpointing,
    # the method
    "stage": _stage,
    "finetuning_type": _tuner,
    "lora_rank": renamed(f"{ADAPTER}.r"),
    "lora_target": _targets,
    "additional_target": renamed(f"{ADAPTER}.modules_to_save", change=as_list),
    "pissa_init": _start,
    "pissa_iter": equal("it belongs to `pissa_init`: `init_lora_weights: pissa_niter_16` here"),
    "pissa_convert": lost("an adapter that started by pissa is saved as PEFT saves it."),
    **each("loraplus_lr_ratio loraplus_lr_embedding", lost("A and B have one learning rate here.")),
    "create_new_adapter": lost(_ONE_ADAPTER),
    **each(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules module_dropout "
        "oft_rank oft_block_size oft_target use_llama_pro",
        lost(NO_TUNER),
    ),
    **each(
        "pref_beta pref_ftx pref_loss ref_model reward_model dpo_label_smoothing simpo_gamma "
        "kto_chosen_weight kto_rejected_weight ppo_epochs ppo_buffer_size reward_model_type",
        lost(_SUPERVISED),
    ),
    **each(
        "use_galore use_apollo use_badam use_adam_mini use_muon galore_rank apollo_rank badam_mode",
        lost(ADAMW),
    ),
    **each("use_dft_loss use_asft_loss use_eaft_loss asft_alpha eaft_alpha", lost(LOSS)),
    "pure_bf16": renamed(
        "train.bf16", note="the base model is held in bfloat16; an adapter learns in float32."
    ),
    **each(
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model media_dir "
        "image_max_pixels image_min_pixels video_max_pixels video_min_pixels video_fps "
        "video_maxlen audio_sampling_rate",
        lost(_TEXT_ONLY, off=(True,)),
    ),
    "early_stopping_steps": renamed("train.early_stopping_patience"),
    "plot_loss": equal("graft draws loss.png anyway"),
    "include_effective_tokens_per_second": equal("graft counts them anyway"),
    "disable_shuffling": lost(SHUFFLED),
    **each(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode "
        "swanlab_api_key swanlab_logdir",
        lost(NO_TRACKER),
    ),
    **each(
        "use_ray ray_run_name ray_num_workers ray_init_kwargs ray_storage_path", lost(ONE_DEVICE)
    ),
    **each("resources_per_worker placement_strategy master_addr master_port", lost(ONE_DEVICE)),
    **each(
        "export_dir export_size export_device export_hub_model_id export_legacy_format",
        equal("`graft merge ADAPTER FOLDER` writes the merged model"),
    ),
    # the data
    "dataset": renamed("data.train", change=lambda value: one_or_many(as_list(value))),
    "eval_dataset": renamed("data.eval", change=lambda value: one_or_many(as_list(value))),
    "dataset_dir": _folder,
    "template": lost(TEMPLATE),
    "cutoff_len": renamed("data.max_length"),
    "val_size": fraction("data.eval_fraction", COUNTED),
    "max_samples": renamed("data.max_rows"),
    "train_on_prompt": renamed("data.train_on", values={True: "all", False: "response"}),
    "mask_history": lost(
        "every answer of a conversation is learned; put `loss: false` on the turns to leave out."
    ),
    "packing": packed,
    "neat_packing": packed,
    "mix_strategy": _mix,
    "interleave_probs": _mix,
    "tool_format": lost("tools are rendered by the chat template."),
    "default_system": lost("put the system prompt into the rows (`system`, or a system turn)."),
    **each("enable_thinking preserve_thinking", lost(TEMPLATE, off=(True,))),
    "streaming": lost("graft reads the rows into memory and caches them tokenised."),
    "tokenized_path": lost("graft keeps tokenised rows in its own cache (`data.use_cache`)."),
    "eval_on_each_dataset": lost("graft evaluates on all rows of `data.eval` together."),
    **each(
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers buffer_size "
        "data_shared_file_system ignore_pad_token_for_loss eval_num_beams",
        equal(IN_MEMORY),
    ),
}
