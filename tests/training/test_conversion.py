"""Files as the tools' own examples are written."""

from __future__ import annotations

import json

import pytest
import yaml

from graft.errors import ConfigError
from graft.training.conversion import convert
from graft.training.run import train
from graft.training.runfile import load_run_config, parse_run_config
from tiny import SENTENCES

LLAMA_FACTORY = """
### model
model_name_or_path: org/chat-model
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: qwen
cutoff_len: 1024
max_samples: 500
overwrite_cache: true
preprocessing_num_workers: 8

### output
output_dir: saves/chat/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: wandb

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
flash_attn: fa2
quantization_bit: 4
hf_hub_token: hf_verysecret

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""

AXOLOTL = """
base_model: org/base-model
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer

load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: org/alpaca_2k
    type: alpaca
  - path: rows/chats.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles_to_train: ["assistant"]
  - path: json
    data_files: [rows/books.jsonl]
    type: completion
    field: body
dataset_prepared_path:
val_set_size: 0.05
output_dir: ./outputs/out

sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true

adapter: qlora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true

wandb_project:
wandb_entity:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
learning_rate: "2e-4"
train_on_inputs: false
bf16: auto
tf32: false
gradient_checkpointing: true
early_stopping_patience:
logging_steps: 1
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end|>"
"""


def make(folder, text, name="their.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def accounted(done) -> set[str]:
    lost = {name.partition(":")[0] for name in done.lost}
    return {*done.carried, *done.equal, *lost}


def test_llama_factory(tmp_path):
    path = make(tmp_path, LLAMA_FACTORY)
    done = convert(path)
    assert done.tool == "LLaMA-Factory"
    assert done.raw() == {
        "base_model": "org/chat-model",
        "task_type": "CAUSAL_LM",
        "adapters": {
            "assistant": {
                "method": "lora",
                "r": 16,
                "lora_alpha": 32,  # twice the rank, as there
                "target_modules": "all-linear",
            }
        },
        "data": {
            "train": ["identity", "alpaca_en_demo"],
            "dataset_dir": "data",
            "eval_fraction": 0.1,
            "max_length": 1024,
            "max_rows": 500,
        },
        "train": {
            "output_dir": "saves/chat/lora/sft",
            "overwrite_output_dir": True,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-4,
            "num_train_epochs": 3.0,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "logging_steps": 10,
            "eval_steps": 500,
            "save_steps": 500,
            "bf16": True,
            "gradient_checkpointing": True,  # on unless it is switched off, as there
        },
    }
    assert list(done.lost) == [
        "trust_remote_code: true",
        "template: qwen",
        "report_to: wandb",
        "flash_attn: fa2",
        "quantization_bit: 4",
        "hf_hub_token",
        "dataset_dir: data",
    ]
    assert accounted(done) >= yaml.safe_load(LLAMA_FACTORY).keys()
    assert "verysecret" not in done.text()


def test_axolotl(tmp_path):
    done = convert(make(tmp_path, AXOLOTL))
    assert done.tool == "axolotl"
    assert done.raw() == {
        "base_model": "org/base-model",
        "task_type": "CAUSAL_LM",
        "adapters": {
            "assistant": {
                "method": "lora",
                "target_modules": "all-linear",
                "r": 32,
                "lora_alpha": 16,
                "lora_dropout": 0.05,
            }
        },
        "data": {
            "train": [
                {"path": "hf:org/alpaca_2k", "format": "alpaca"},
                {"path": "rows/chats.jsonl", "format": "sharegpt"},
                {"path": "rows/books.jsonl", "format": "text", "columns": {"text": "body"}},
            ],
            "eval_fraction": 0.05,
            "max_length": 2048,
            "train_on": "response",
        },
        "train": {
            "output_dir": "./outputs/out",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "weight_decay": 0.0,
            "num_train_epochs": 4.0,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 10,
            "logging_steps": 1,
            "gradient_checkpointing": True,
        },
    }
    assert list(done.lost) == [
        "load_in_4bit: true",
        "datasets",
        "sequence_len: 2048",
        "sample_packing: true",
        "adapter: qlora",
        "optimizer: paged_adamw_32bit",
        "evals_per_epoch: 4",
    ]
    assert accounted(done) == yaml.safe_load(AXOLOTL).keys()


@pytest.mark.parametrize("text", [LLAMA_FACTORY, AXOLOTL])
def test_the_run_file_loads_and_says_what_is_lost(tmp_path, text):
    done = convert(make(tmp_path, text))
    path = make(tmp_path, done.text(), "run.yaml")
    assert load_run_config(path) == parse_run_config(done.raw())
    comments = [line for line in done.text().splitlines() if line.startswith("#")]
    told = " ".join(line.strip("# ") for line in comments)
    for name, why in done.lost.items():
        assert name.partition(":")[0] in told
        assert why.split()[0] in told
    assert max(len(line) for line in comments) <= 100


def test_a_converted_run_trains(tmp_path, base_folder):
    """With LLaMA-Factory's dataset_info.json beside it."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"query": s[:8], "answer": s[8:]} for s in SENTENCES]
    (data / "rows.json").write_text(json.dumps(rows))
    columns = {"prompt": "query", "response": "answer"}
    info = {"own": {"file_name": "rows.json", "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(info))
    text = f"""
model_name_or_path: {base_folder}
finetuning_type: lora
dataset: own
dataset_dir: {data}
template: default
cutoff_len: 64
val_size: 0.2
output_dir: {tmp_path / "out"}
max_steps: 2
lora_target: q_proj,v_proj
"""
    done = convert(make(tmp_path, text))
    assert list(done.lost) == ["template: default"]
    result = train(parse_run_config(done.raw()))
    assert result.summary["steps"] == 2
    assert result.model.peft_config["default"].target_modules == ["q_proj", "v_proj"]


def llama_factory(more: str = "", **changes: object) -> str:
    base = {"model_name_or_path": "x", "finetuning_type": "lora", "dataset": "a", "output_dir": "o"}
    return yaml.safe_dump({**base, **changes}) + more


def axolotl(**changes: object) -> str:
    data = [{"path": "a.jsonl", "type": "alpaca"}]
    base = {"base_model": "x", "adapter": "lora", "datasets": data, "output_dir": "o"}
    return yaml.safe_dump({**base, **changes})


def settings_of(tmp_path, text) -> dict:
    done = convert(make(tmp_path, text))
    return {**done.assumed, **done.settings}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        (llama_factory(), "train.learning_rate", 5e-5),
        (llama_factory(), "data.max_length", 2048),
        (llama_factory(), "train.num_train_epochs", 3.0),
        (llama_factory(), "train.gradient_checkpointing", True),
        (llama_factory(disable_gradient_checkpointing=True), "train.gradient_checkpointing", False),
        (llama_factory(learning_rate="3e-5"), "train.learning_rate", 3e-5),
        (llama_factory(pissa_init=True), "adapters.NAME.init_lora_weights", "pissa_niter_16"),
        (
            llama_factory(pissa_init=True, pissa_iter=-1),
            "adapters.NAME.init_lora_weights",
            "pissa",
        ),
        (llama_factory(stage="pt"), "data.format", "text"),
        (llama_factory(warmup_steps=0.1), "train.warmup_ratio", 0.1),
        (llama_factory(warmup_steps=5, warmup_ratio=0.1), "train.warmup_steps", 5),
        (llama_factory(eval_strategy="steps"), "train.eval_steps", 500),
        (llama_factory(additional_target="embed,head"), "adapters.NAME.modules_to_save",
         ["embed", "head"]),
        (llama_factory(lora_alpha=5), "adapters.NAME.lora_alpha", 5),
        (axolotl(), "train.per_device_train_batch_size", 1),
        (axolotl(), "train.lr_scheduler_type", "cosine"),
        (axolotl(), "train.warmup_ratio", 0.03),
        (axolotl(warmup_steps=0), "train.warmup_steps", 0),
        (axolotl(), "data.max_length", 512),
        (axolotl(batch_size=16, micro_batch_size=4), "train.gradient_accumulation_steps", 4),
        (axolotl(peft_use_dora=True), "adapters.NAME.use_dora", True),
        (axolotl(lora_target_modules=["q_proj"]), "adapters.NAME.target_modules", ["q_proj"]),
        (axolotl(datasets=[{"path": "a.csv", "type": "completion"}]), "data.train",
         {"path": "a.csv", "format": "text"}),
        (axolotl(datasets=[{"path": "o/d", "split": "train[:9]", "name": "en",
                            "type": "chat_template"}]), "data.train",
         {"path": "hf:o/d", "subset": "en", "split": "train", "max_rows": 9,
          "format": "messages"}),
        (axolotl(datasets=[{"path": "a.jsonl", "type": {"field_instruction": "q",
                                                        "field_output": "output"}}]),
         "data.train", {"path": "a.jsonl", "format": "alpaca", "columns": {"instruction": "q"}}),
    ],
)  # fmt: skip
def test_settings_and_defaults(tmp_path, text, path, value):
    assert settings_of(tmp_path, text)[path] == value


@pytest.mark.parametrize(
    ("text", "setting", "words"),
    [
        (llama_factory(val_size=100), "val_size: 100", "counts rows"),
        (llama_factory(mask_history=True), "mask_history: true", "loss: false"),
        (llama_factory(no_such="x"), "no_such: x", "does not know"),
        (llama_factory(lr_scheduler_type="reduce_lr_on_plateau"),
         "lr_scheduler_type: reduce_lr_on_plateau", "no such schedule"),
        (llama_factory(warmup_steps=5, warmup_ratio=0.1), "warmup_ratio", "comes first"),
        (llama_factory(use_unsloth=True), "use_unsloth: true", "no such switch"),
        (llama_factory(adapter_name_or_path="old"), "adapter_name_or_path: old", "--resume"),
        (axolotl(lr_scheduler="rex"), "lr_scheduler: rex", "no such schedule"),
        (axolotl(shuffle_merged_datasets=False), "shuffle_merged_datasets: false", "random order"),
        (axolotl(lora_target_linear=True, lora_target_modules=["q"]), "lora_target_modules",
         "already"),
        (axolotl(deepspeed="zero2.json"), "deepspeed: zero2.json", "one device"),
        (axolotl(plugins=["axolotl.integrations.liger.LigerPlugin"]), "plugins", "no plugins"),
        (axolotl(datasets=[{"path": "a.jsonl", "type": "oasst", "shards": 10}]), "datasets",
         "type 'oasst' is not a format of graft"),
        (axolotl(datasets=[{"path": "a.jsonl", "type": "alpaca", "shards": 10}]), "datasets",
         "shards of a.jsonl"),
        (axolotl(datasets=[{"path": "o/d", "split": "train[:20%]", "type": "alpaca"}]), "datasets",
         "[:20%] of o/d"),
    ],
)  # fmt: skip
def test_what_is_lost_is_said(tmp_path, text, setting, words):
    assert words in convert(make(tmp_path, text)).lost[setting]


def test_a_setting_that_says_what_graft_does_is_not_lost(tmp_path):
    done = convert(make(tmp_path, axolotl(warmup_steps=0, roles_to_train=["assistant"])))
    assert "roles_to_train" in done.equal
    assert list(done.lost) == ["datasets"]
    assert "train.warmup_ratio" not in done.assumed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (llama_factory(finetuning_type="full"), "`finetuning_type: full`"),
        (llama_factory(stage="dpo"), "`stage: dpo`"),
        (llama_factory(dataset=None), "`dataset`"),
        (llama_factory(export_dir="merged"), "graft merge"),
        (axolotl(adapter=None), "trains the whole model"),
        (axolotl(adapter="llama-adapter"), "`adapter: llama-adapter`"),
        (axolotl(rl="dpo"), "`rl: dpo`"),
        (axolotl(datasets=[]), "`datasets`"),
        ("tuner_type: lora\nmodel: x\n", "is a file of ms-swift"),
        ("assistant_only_loss: true\n", "is a file of TRL"),
        ("name: web\nservices: []\n", "of no tool that graft knows"),
        ("base_model: x\nadapters: {}\n", "is a run file already"),
        ("", "is empty"),
        (llama_factory(num_train_epochs="three"), "`train.num_train_epochs` cannot be 'three'"),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        convert(make(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
