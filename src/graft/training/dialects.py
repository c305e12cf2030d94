"""The names that other training tools give to settings, and what they are called here.

Only for error messages: a run file has one spelling.
"""

from __future__ import annotations

__all__ = ["FOREIGN", "foreign_name"]

METHOD, RANK, TARGETS = "adapters.NAME.method", "adapters.NAME.r", "adapters.NAME.target_modules"

# name -> whose it is, and the setting that does it here
FOREIGN: dict[str, tuple[str, str]] = {
    "model_name_or_path": ("LLaMA-Factory's and TRL's", "base_model"),
    "finetuning_type": ("LLaMA-Factory's", METHOD),
    "lora_rank": ("LLaMA-Factory's and ms-swift's", RANK),
    "lora_target": ("LLaMA-Factory's", TARGETS),
    "additional_target": ("LLaMA-Factory's", "adapters.NAME.modules_to_save"),
    "cutoff_len": ("LLaMA-Factory's", "data.max_length"),
    "dataset": ("LLaMA-Factory's and ms-swift's", "data.train"),
    "eval_dataset": ("LLaMA-Factory's and TRL's", "data.eval"),
    "val_size": ("LLaMA-Factory's", "data.eval_fraction"),
    "max_samples": ("LLaMA-Factory's", "data.max_rows"),
    "train_on_prompt": ("LLaMA-Factory's", "data.train_on"),
    "disable_gradient_checkpointing": ("LLaMA-Factory's", "train.gradient_checkpointing"),
    "model": ("ms-swift's", "base_model"),
    "model_revision": ("ms-swift's", "revision"),
    "tuner_type": ("ms-swift's", METHOD),
    "train_type": ("ms-swift's", METHOD),
    "val_dataset": ("ms-swift's", "data.eval"),
    "split_dataset_ratio": ("ms-swift's", "data.eval_fraction"),
    "loss_scale": ("ms-swift's", "data.train_on"),
    "torch_dtype": ("ms-swift's", "train.bf16"),
    "adapter": ("axolotl's", METHOD),
    "lora_r": ("axolotl's and TRL's", RANK),
    "lora_target_modules": ("axolotl's and TRL's", TARGETS),
    "lora_target_linear": ("axolotl's", f"{TARGETS}: all-linear"),
    "lora_modules_to_save": ("axolotl's", "adapters.NAME.modules_to_save"),
    "sequence_len": ("axolotl's", "data.max_length"),
    "datasets": ("axolotl's", "data.train"),
    "test_datasets": ("axolotl's", "data.eval"),
    "val_set_size": ("axolotl's", "data.eval_fraction"),
    "train_on_inputs": ("axolotl's", "data.train_on"),
    "roles_to_train": ("axolotl's", "data.train_on"),
    "micro_batch_size": ("axolotl's", "train.per_device_train_batch_size"),
    "num_epochs": ("axolotl's", "train.num_train_epochs"),
    "lr_scheduler": ("axolotl's", "train.lr_scheduler_type"),
    "peft_type": ("PEFT's", METHOD),
    "dataset_name": ("TRL's", "data.train"),
    "max_seq_length": ("TRL's", "data.max_length"),
    "assistant_only_loss": ("TRL's", "data.train_on"),
    "completion_only_loss": ("TRL's", "data.train_on"),
    "gradient_clipping": ("DeepSpeed's", "train.max_grad_norm"),
    "fp16": ("transformers'", "train.bf16"),
    "eval_strategy": ("transformers'", "train.eval_steps"),
    "save_strategy": ("transformers'", "train.save_steps"),
    "resume_from_checkpoint": ("transformers'", "--resume"),
    "rank": ("a common", RANK),
    "alpha": ("a common", "adapters.NAME.lora_alpha"),
    "lr": ("a common", "train.learning_rate"),
    "batch_size": ("a common", "train.per_device_train_batch_size"),
    "epochs": ("a common", "train.num_train_epochs"),
}


def foreign_name(key: str) -> str | None:
    """A sentence on the last part of the dotted `key` where it is another tool's name."""
    whose, ours = FOREIGN.get(key.rpartition(".")[2], ("", ""))
    return f"`{key}` is {whose} name; here it is `{ours}`." if ours else None
