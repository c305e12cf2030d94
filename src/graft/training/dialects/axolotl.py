"""axolotl's settings in graft's words."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from graft.training.dialects.llama_factory import NO_QUANTISATION, NO_TUNER, TEMPLATE, packed
from graft.training.dialects.rules import (
    ADAPTER,
    Here,
    Rule,
    each,
    equal,
    fraction,
    lost,
    one_or_many,
    renamed,
)
from graft.training.dialects.transformers import (
    ADAMW,
    IN_MEMORY,
    LOSS,
    NO_CODE,
    NO_HUB,
    NO_TRACKER,
    ONE_DEVICE,
    SHUFFLED,
    SPEED,
    optimizer,
    resume,
)

__all__ = ["AXOLOTL"]

_FILE = re.compile(r"\.(jsonl?|csv|parquet|txt)$")
_COUNT = "it counts rows there; give a share such as `data.eval_fraction: 0.05`."
_TOKENS = "graft takes the tokenizer as it is; make other tokens in the base model's own folder."
_WHOLE_BATCH = "`train.gradient_accumulation_steps` is this by `micro_batch_size`."
_TEXT_TYPES = ("completion", "pretrain")
_LOADERS = ("json", "csv", "parquet", "text")


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


def _datasets(section: str) -> Rule:
    def rule(value: Any) -> Here:
        if not value:
            return Here(equal="it is not set")
        entries, notes = [], []
        for each_one in value if isinstance(value, list) else [value]:
            entry, note = _dataset(each_one)
            entries.append(entry)
            notes += note
        return Here({section: one_or_many(entries)}, " ".join(dict.fromkeys(notes)))

    return rule


def _dataset(theirs: Any) -> tuple[Any, list[str]]:
    """An entry of `datasets` as one of `data.train`, and what is not the same."""
    if not isinstance(theirs, dict):
        return _place(str(theirs)), []
    left = {name: value for name, value in theirs.items() if value not in (None, [], {})}
    path, files = str(left.pop("path", "")), left.pop("data_files", None)
    notes = []
    if files is not None:
        if path in _LOADERS:
            path = files if isinstance(files, str) else files[0]
        if not isinstance(files, str) and len(files) > 1:
            notes.append(f"of data_files only {files[0]} is named; add an entry for each other.")
    entry: dict[str, Any] = {"path": _place(path)}
    for name, ours in (("name", "subset"), ("split", "split"), ("revision", "revision")):
        if name in left:
            entry[ours] = left.pop(name)
    layout, note = _layout(left)
    entry |= layout
    notes += note
    left.pop("ds_type", None)
    if left:
        notes.append(
            f"{', '.join(sorted(left))} of {path}: graft has no such setting of a data set."
        )
    return entry, notes


def _place(path: str) -> str:
    """A name on the hub says so here; a file is a file."""
    is_file = _FILE.search(path) or path.startswith((".", "/", "~", "hf:", "ms:", "s3:", "gs:"))
    return path if is_file or len(PurePath(path).parts) != 2 else f"hf:{path}"


def _layout(left: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The format and columns that `type` and the fields of an entry mean; takes them out."""
    kind = left.pop("type", None)
    if isinstance(kind, dict):
        return _own_prompt(kind)
    name = str(kind or "").partition(".")[0].partition(":")[0]
    if name == "alpaca":
        note = "alpaca: the columns are the same, the prompt is the base model's chat template."
        return {"format": "alpaca"}, [note]
    if name == "chat_template":
        return _turns(left)
    if name == "sharegpt":
        left.pop("conversation", None)
        return {"format": "sharegpt"}, []
    if name in _TEXT_TYPES:
        field = left.pop("field", "text")
        return {"format": "text", **({} if field == "text" else {"columns": {"text": field}})}, []
    note = f"type {kind!r} is not a format of graft: give `format` and `columns`."
    return {}, [] if kind is None else [note]


def _turns(left: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    names = left.pop("message_property_mappings", None) or {
        "role": left.pop("message_field_role", "role"),
        "content": left.pop("message_field_content", "content"),
    }
    column = left.pop("field_messages", "messages")
    for name in ("chat_template", "roles", "roles_to_train", "train_on_eos", "train_on_eot"):
        if left.get(name) in (["assistant"], "tokenizer_default", "turn", "all"):
            del left[name]
    if (names.get("role"), names.get("content")) == ("from", "value"):
        columns = {} if column == "conversations" else {"columns": {"conversations": column}}
        return {"format": "sharegpt", **columns}, []
    columns = {} if column == "messages" else {"columns": {"messages": column}}
    if (names.get("role", "role"), names.get("content", "content")) == ("role", "content"):
        return {"format": "messages", **columns}, []
    note = "turns must have `role` and `content` (messages) or `from` and `value` (sharegpt)."
    return {"format": "messages", **columns}, [note]


def _own_prompt(kind: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    fields = {"instruction": "field_instruction", "input": "field_input", "output": "field_output"}
    columns = {ours: kind[theirs] for ours, theirs in fields.items() if kind.get(theirs)}
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    notes = []
    if kind.get("format") or kind.get("no_input_format") or kind.get("system_prompt"):
        notes.append(
            "the prompt's own form is not kept: the base model's chat template renders it."
        )
    return {"format": "alpaca", **({"columns": columns} if columns else {})}, notes


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
    "datasets": _datasets("data.train"),
    "test_datasets": _datasets("data.eval"),
    "pretraining_dataset": _datasets("data.train"),
    "val_set_size": fraction("data.eval_fraction", _COUNT),
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
        lost("graft draws the rows in a new random order each epoch."),
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
