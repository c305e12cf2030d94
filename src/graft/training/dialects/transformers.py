"""`TrainingArguments` of transformers, which LLaMA-Factory, ms-swift and TRL share.

The names that graft has too are not here: they mean the same in both.
"""

from __future__ import annotations

from typing import Any

from graft.training.dialects.reasons import (
    ADAMW,
    EXACT_RESUME,
    IN_MEMORY,
    LOGGED,
    LOSS,
    NO_CODE,
    NO_FP16,
    NO_HUB,
    NO_TRACKER,
    ONE_DEVICE,
    SHUFFLED,
    SPEED,
    WHOLE_CHECKPOINT,
)
from graft.training.dialects.rules import (
    ADAPTER,
    Here,
    Rule,
    each,
    equal,
    fraction,
    lost,
    renamed,
)

__all__ = ["COMMON", "TRANSFORMERS"]


def optimizer(value: Any) -> Here:
    """AdamW by any of its names is what graft does."""
    plain = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused")
    return Here(equal="graft trains with AdamW") if str(value) in plain else Here(lost=ADAMW)


def evaluation(value: Any) -> Here:
    """When to evaluate."""
    if value in ("epoch", "steps"):
        return Here(equal="graft evaluates every `train.eval_steps`, or else after each epoch")
    return Here(
        lost="graft evaluates where there are rows for it: leave `data.eval` and "
        "`data.eval_fraction` out to train without."
    )


def saving(value: Any) -> Here:
    """When to save."""
    if value in ("epoch", "steps"):
        return Here(equal="graft saves every `train.save_steps`, or else after each epoch")
    return Here(
        lost="graft always saves: every `train.save_steps`, or else after each epoch; it keeps "
        "the best adapter in best/ and the newest `train.save_total_limit` checkpoints."
    )


def resume(value: Any) -> Here:
    """Resuming is said on the command line."""
    if not value:
        return Here(equal="a run starts anew unless it is told to resume")
    return Here(lost="`graft train RUN.yaml --resume` goes on from the newest checkpoint of a run.")


TRANSFORMERS: dict[str, Rule] = {
    "fp16": lost(NO_FP16, off=("auto",)),
    "optim": optimizer,
    "activation_checkpointing": renamed("train.gradient_checkpointing"),
    "activation_checkpointing_kwargs": lost(SPEED),
    "adafactor": lost(ADAMW),
    "eval_strategy": evaluation,
    "evaluation_strategy": evaluation,
    "save_strategy": saving,
    "save_only_model": lost(WHOLE_CHECKPOINT),
    "resume_from_checkpoint": resume,
    "data_seed": lost("`train.seed` decides the order of the rows too."),
    "neftune_noise_alpha": lost("graft adds no noise to the embeddings."),
    "label_smoothing_factor": lost(LOSS),
    "metric_for_best_model": lost(
        "graft judges by the evaluation loss.", off=("loss", "eval_loss")
    ),
    "group_by_length": lost(SPEED),
    "train_sampling_strategy": lost(SHUFFLED, off=("random",)),
    "per_gpu_train_batch_size": renamed("train.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": renamed("train.per_device_eval_batch_size"),
    "lr_scheduler_name": renamed("train.lr_scheduler_type"),
    **each(
        "do_train greater_is_better save_safetensors log_level log_level_replica "
        "logging_strategy disable_tqdm logging_nan_inf_filter past_index "
        "include_num_input_tokens_seen include_tokens_per_second",
        equal("graft does so without being asked"),
    ),
    **each(
        "do_eval prediction_loss_only eval_on_start eval_delay eval_accumulation_steps "
        "batch_eval_metrics include_for_metrics eval_do_concat_batches eval_use_gather_object "
        "include_inputs_for_metrics bf16_full_eval fp16_full_eval",
        equal(
            "graft evaluates before the first step and while training, where there are rows for it"
        ),
    ),
    **each(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_drop_last dataloader_multiprocessing_context "
        "dataloader_in_order remove_unused_columns label_names length_column_name",
        equal(IN_MEMORY),
    ),
    "ddp_timeout": equal("graft trains in one process, which waits for no other"),
    **each("logging_first_step logging_dir jit_mode_eval", equal(LOGGED)),
    **each(
        "deepspeed fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params "
        "ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph local_rank accelerator_config "
        "parallelism_config tpu_num_cores mp_parameters split_batches save_on_each_node "
        "log_on_each_node average_tokens_across_devices",
        lost(ONE_DEVICE),
    ),
    **each(
        "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id",
        lost(NO_TRACKER),
    ),
    **each(
        "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push "
        "hub_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        lost(NO_HUB),
    ),
    **each(
        "torch_compile torch_compile_backend torch_compile_mode tf32 torch_empty_cache_steps "
        "use_liger_kernel liger_kernel_config auto_find_batch_size fp16_opt_level "
        "half_precision_backend fp16_backend gradient_checkpointing_kwargs torchdynamo "
        "use_ipex use_legacy_prediction_loop skip_memory_metrics use_cache",
        lost(SPEED),
    ),
    **each("optim_args optim_target_modules", lost(ADAMW)),
    **each("trust_remote_code", lost(NO_CODE)),
    **each(
        "do_predict predict_with_generate compute_accuracy",
        lost("graft evaluates the loss, and a classifier's accuracy; `graft generate` answers."),
    ),
    **each(
        "use_cpu no_cuda use_mps_device",
        lost("graft takes the GPU where there is one; CUDA_VISIBLE_DEVICES= (empty) hides it."),
    ),
    **each("full_determinism debug", lost("the same seed gives the same run on a CPU without it.")),
    **each(
        "ignore_data_skip restore_callback_states_from_checkpoint enable_jit_checkpoint",
        lost(EXACT_RESUME),
    ),
}

# What PEFT calls things, and what people write from memory.
COMMON: dict[str, Rule] = {
    "peft_type": renamed(f"{ADAPTER}.method", change=lambda kind: str(kind).lower()),
    "rank": renamed(f"{ADAPTER}.r"),
    "alpha": renamed(f"{ADAPTER}.lora_alpha"),
    "dropout": renamed(f"{ADAPTER}.lora_dropout"),
    "lr": renamed("train.learning_rate"),
    "batch_size": renamed("train.per_device_train_batch_size"),
    "epochs": renamed("train.num_train_epochs"),
    "gradient_clipping": renamed("train.max_grad_norm"),
    "clip_grad_norm": renamed("train.max_grad_norm"),
    "warmup": fraction("train.warmup_ratio", "write it as `train.warmup_steps`."),
    "scheduler": renamed("train.lr_scheduler_type"),
    "train_file": renamed("data.train"),
    "validation_file": renamed("data.eval"),
    "eval_file": renamed("data.eval"),
}
