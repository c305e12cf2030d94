"""axolotl's settings in graft's words."""

from __future__ import annotations

from typing import Any

from graft.training.dialects.axolotl_data import datasets
from graft.training.dialects.reasons import (
    ADAMW,
    COUNTED,
    IN_MEMORY,
    LOSS,
    NO_CODE,
    NO_HUB,
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
    each,
    equal,
    fraction,
    lost,
    packed,
    renamed,
)
from graft.training.dialects.transformers import optimizer, resume

__all__ = ["AXOLOTL"]

_TOKENS = "graft takes the tokenizer as it is; make other tokens in the base model's own folder."
_WHOLE_BATCH = "`train.gradient_accumulation_steps` is this by `micro_batch_size`."


def _adapter(value: Any) -> Here:
    if value in ("lora", "qlora"):
        return Here({f"{ADAPTER}.method": "lora"}, NO_QUANTISATION if value == "qlora" else "")
    return Here(lost=NO_TUNER)


def _linear(value: Any) -> Here:
    if value:
        return Here({f"{ADAPTER}.target_modules": "all-linear"})
    return Here(equal="the modules are named apart from it")


def _precision(value: Any) -> Here:
    if value in ("auto", None):
        return Here(equal="graft decides by the hardware")
    return Here({"train.bf16": bool(value)})


def _length(value: Any) -> Here:
    return Here(
        {"data.max_length": value}, "rows that are longer are cut here; axolotl leaves them out."
    )


def _too_long(value: Any) -> Here:
    if value in (None, "truncate"):
        return Here(equal="longer rows are cut")
    return Here(lost="longer rows are cut; `graft data check` counts them.")


def _rate(value: Any) -> Here:
    return Here({"train.learning_rate": float(value)})


def _lowest(value: Any) -> Here:
    if value is None:
        return Here(equal="it is not set")
    return Here(
        {
            "train.lr_scheduler_type": "cosine_with_min_lr",
            "train.lr_scheduler_kwargs": {"min_lr_rate": float(value)},
        }
    )


def _per_epoch(setting: str) -> Rule:
    def rule(value: Any) -> Here:
        if value in (None, 1):
            return Here(equal="so does graft")
        return Here(lost=f"`train.{setting}` says it in steps; left out, it is once an epoch.")

    return rule


def _steps(setting: str) -> Rule:
    def rule(value: Any) -> Here:
        if isinstance(value, float) and value < 1:
            return Here(lost=f"`train.{setting}` is a number of steps, not a share of them.")
        return renamed(f"train.{setting}")(value)

    return rule


def _checkpointing(value: Any) -> Here:
    return Here({"train.gradient_checkpointing": bool(value)})


def _shuffled(value: Any) -> Here:
    if value in (None, True):
        return Here(equal="so does graft")
    return Here(lost=SHUFFLED)


def _causal(value: Any) -> Here:
    if value is None or str(value).endswith("ForCausalLM"):
        return Here(equal="it goes by `task_type: CAUSAL_LM`")
    return Here(lost="graft takes the class that belongs to `task_type`.")


def _special(value: Any) -> Here:
    if not set(value or {}) - {"pad_token"}:
        return Here(equal="padding is never learned, whatever its token")
    return Here(lost=_TOKENS)


def _template(value: Any) -> Here:
    if value in (None, "tokenizer_default"):
        return Here(equal="graft takes the tokenizer's chat template")
    return Here(lost=TEMPLATE)


AXOLOTL: dict[str, Rule] = {
    # the model
    **each("base_model_config tokenizer_config", lost("graft takes both from `base_model`.")),
    "model_type": _causal,
    "tokenizer_type": equal("graft takes the tokenizer's own class"),
    "revision_of_model": renamed("revision"),
    "trust_remote_code": lost(NO_CODE),
    **each("load_in_8bit load_in_4bit gptq bnb_config_kwargs", lost(NO_QUANTISATION)),
    **each(
        "special_tokens tokens added_tokens_overrides resize_token_embeddings_to_32x "
        "tokenizer_use_fast tokenizer_legacy shrink_embeddings embeddings_skip_upcast "
        "fix_untrained_tokens",
        lost(_TOKENS, off=(True,)),
    ),
    "special_tokens": _special,
    **each(
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model "
        "is_falcon_derived_model strict",
        equal("graft reads the structure of the model, and refuses what it does not know"),
    ),
    **each(
        "overrides_of_model_config overrides_of_model_kwargs rope_scaling device_map "
        "max_memory gpu_memory_limit",
        lost("graft takes the base model as its config.json says."),
    ),
    # the method
    "adapter": _adapter,
    "lora_r": renamed(f"{ADAPTER}.r"),
    "lora_target_linear": _linear,
    "lora_target_modules": renamed(f"{ADAPTER}.target_modules"),
    "lora_target_parameters": renamed(f"{ADAPTER}.target_parameters"),
    "lora_modules_to_save": renamed(f"{ADAPTER}.modules_to_save"),
    "lora_rank_pattern": renamed(f"{ADAPTER}.rank_pattern"),
    "lora_alpha_pattern": renamed(f"{ADAPTER}.alpha_pattern"),
    "lora_fan_in_fan_out": equal("graft finds it out by itself"),
    "peft_layers_to_transform": renamed(f"{ADAPTER}.layers_to_transform"),
    "peft_layers_pattern": renamed(f"{ADAPTER}.layers_pattern"),
    "peft_use_dora": renamed(f"{ADAPTER}.use_dora"),
    "peft_use_rslora": renamed(f"{ADAPTER}.use_rslora"),
    "peft_init_lora_weights": renamed(f"{ADAPTER}.init_lora_weights"),
    "peft_trainable_token_indices": renamed(f"{ADAPTER}.trainable_token_indices"),
    "peft_autocast_adapter_dtype": equal("an adapter learns in float32"),
    "lora_model_dir": lost("graft starts a new adapter; `--resume` goes on with its own run."),
    "peft": lost(NO_QUANTISATION),
    **each(
        "loraplus_lr_ratio loraplus_lr_embedding lr_groups embedding_lr embedding_lr_scale",
        lost("everything that learns has one learning rate here."),
    ),
    **each(
        "relora relora_prune_ratio relora_cpu_offload lisa_n_layers unfrozen_parameters "
        "reinit_weights freeze_mm_modules",
        lost(NO_TUNER),
    ),
    **each("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_on_cpu", lost(SPEED)),
    **each(
        "rl trl reward_model process_reward_model dpo_beta rl_beta orpo_alpha simpo_gamma "
        "cpo_alpha kto_desirable_weight kto_undesirable_weight",
        lost("graft learns from answers and from plain text only."),
    ),
    # the data
    "datasets": datasets("data.train"),
    "test_datasets": datasets("data.eval"),
    "pretraining_dataset": datasets("data.train"),
    "val_set_size": fraction("data.eval_fraction", COUNTED),
    "sequence_len": _length,
    "eval_sequence_len": lost("evaluation rows have `data.max_length` too."),
    "excess_length_strategy": _too_long,
    "train_on_inputs": renamed("data.train_on", values={True: "all", False: "response"}),
    "roles_to_train": lost("graft learns the assistant's turns.", off=(["assistant"],)),
    **each("chat_template chat_template_jinja chat_template_kwargs", lost(TEMPLATE)),
    "chat_template": _template,
    **each(
        "default_system_message eot_tokens", lost("the chat template says how turns begin and end.")
    ),
    **each(
        "sample_packing eval_sample_packing pretraining_sample_concatenation batch_flattening",
        packed,
    ),
    **each(
        "sample_packing_group_size sample_packing_bin_size sample_packing_sequentially "
        "multipack_real_batches pad_to_multiple_of",
        lost(SPEED),
    ),
    "pad_to_sequence_len": equal(
        "graft pads to the longest row of a batch; padding is never learned"
    ),
    "shuffle_merged_datasets": _shuffled,
    **each(
        "shuffle_before_merging_datasets curriculum_sampling streaming",
        lost(SHUFFLED),
    ),
    "dataset_exact_deduplication": lost("`graft data check` finds rows that are there twice."),
    **each("min_sample_len max_prompt_len", lost("graft leaves no rows out by their length.")),
    **each(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory "
        "dataset_shard_num dataset_shard_idx skip_prepare_dataset hf_use_auth_token "
        "push_dataset_to_hub",
        equal(IN_MEMORY),
    ),
    # the training
    "micro_batch_size": renamed("train.per_device_train_batch_size"),
    "eval_batch_size": renamed("train.per_device_eval_batch_size"),
    "batch_size": lost(_WHOLE_BATCH),
    "num_epochs": renamed("train.num_train_epochs", change=float),
    "learning_rate": _rate,
    "optimizer": optimizer,
    "lr_scheduler": renamed("train.lr_scheduler_type"),
    "cosine_min_lr_ratio": _lowest,
    **each(
        "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor",
        lost("graft has transformers' schedules: see `train.lr_scheduler_type`."),
    ),
    "evals_per_epoch": _per_epoch("eval_steps"),
    "saves_per_epoch": _per_epoch("save_steps"),
    "eval_steps": _steps("eval_steps"),
    "save_steps": _steps("save_steps"),
    "save_first_step": lost("graft saves every `train.save_steps`."),
    "bf16": _precision,
    "bfloat16": _precision,
    "float16": lost("graft holds the base model in bfloat16 or float32: see `train.bf16`."),
    "float32": renamed("train.bf16", change=lambda value: not value),
    "gradient_checkpointing": _checkpointing,
    **each(
        "activation_offloading layer_offloading selective_checkpointing flash_attention "
        "flash_attn_cross_entropy flash_attn_fuse_mlp sdp_attention xformers_attention "
        "flex_attention eager_attention sage_attention attn_implementation tiled_mlp fp8 "
        "chunked_cross_entropy gc_steps low_cpu_mem_usage",
        lost(SPEED),
    ),
    **each("adam_epsilon2 adam_beta3 torchdistx_path", lost(ADAMW)),
    **each(
        "loss_watchdog_threshold loss_watchdog_patience",
        lost("graft stops once the loss is no number any more."),
    ),
    **each("use_eaft eaft_alpha", lost(LOSS)),
    **each(
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset generate_samples",
        lost("graft evaluates the loss, and a classifier's accuracy."),
    ),
    "include_tkps": equal("graft counts tokens a second anyway"),
    **each("resume_from_checkpoint auto_resume_from_checkpoints", resume),
    **each(
        "wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_mode "
        "wandb_log_model use_wandb use_mlflow mlflow_tracking_uri mlflow_experiment_name "
        "use_comet comet_project_name use_tensorboard use_trackio use_otel_metrics "
        "profiler_steps",
        lost(NO_TRACKER),
    ),
    "hub_model_id": lost(NO_HUB),
    **each(
        "dp_shard_size sequence_parallel_degree context_parallel_size tensor_parallel_size "
        "world_size ddp use_ray ray_num_workers fsdp_version fsdp_final_state_dict_type",
        lost(ONE_DEVICE),
    ),
    "plugins": lost("graft loads no plugins."),
}
