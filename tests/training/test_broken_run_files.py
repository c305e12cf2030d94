"""Run files as people break them, each with the whole of what graft says."""

from __future__ import annotations

import pytest

from graft.errors import ConfigError
from graft.training.runfile import load_run_config

WHOLE = {
    "base_model": "base_model: hf:org/base",
    "task_type": "task_type: CAUSAL_LM",
    "adapters": "adapters:\n  own: {method: lora, r: 8}",
    "data": "data: {train: rows.jsonl}",
    "train": "train: {output_dir: out}",
}


def but(more: str = "", **changes: str) -> str:
    """A run file that works, but for `changes`."""
    return "\n".join([*{**WHOLE, **changes}.values(), more, ""])


NO_SUCH = "and graft has no such setting"
EMPTY = "expected lines such as `base_model: ...`. `graft init MODEL DATA` writes a run file."

BROKEN: dict[str, tuple[str, str]] = {
    # --- no settings at all
    "empty": ("", f"run.yaml is empty; {EMPTY}"),
    "comments only": ("# base_model: x\n", f"run.yaml is empty; {EMPTY}"),
    "a list": ("- base_model: x\n", f"run.yaml holds a list, not settings; {EMPTY}"),
    "a word": ("hello\n", f"run.yaml holds only 'hello', not settings; {EMPTY}"),
    "not YAML": (
        "base_model: x\ndata: {train: [a\n",
        "run.yaml is not valid YAML at line 3, column 1: expected ',' or ']', "
        "but got '<stream end>'.",
    ),
    "a tab": (
        "train:\n\toutput_dir: out\n",
        "run.yaml is not valid YAML at line 2, column 1: a tab, where YAML wants spaces to indent.",
    ),
    "a key twice": (
        but("train: {seed: 1}"),
        "run.yaml: `train` is given twice, in lines 6 and 7.",
    ),
    # --- settings that are not there
    "no base model": (
        but(base_model=""),
        "`base_model` is missing: name the frozen model, such as `base_model: hf:ORG/NAME`.",
    ),
    "no output folder": (
        but(train="train: {seed: 1}"),
        "`train`: output_dir is missing: the folder for the adapter and the log.",
    ),
    "no data": (
        but(data="data: {max_length: 512}"),
        "`data.train` is missing: name what to learn from, such as `train: rows.jsonl`.",
    ),
    "a section that is empty": (
        but(data="data:"),
        "`data` cannot be empty: expected a mapping.",
    ),
    "almost nothing": (
        "seed: 1\n",
        "`seed` is in the wrong place; it belongs at `train.seed`.\n"
        "`base_model` is missing: name the frozen model, such as `base_model: hf:ORG/NAME`.\n"
        "`task_type` is missing: say what the model is for, such as `task_type: CAUSAL_LM`.\n"
        "`adapters` is missing: name one to train, such as "
        "`adapters: {assistant: {method: lora}}`.\n"
        "`data` is missing: say what to learn from, such as `data: {train: rows.jsonl}`.\n"
        "`train` is missing: say where to write, such as `train: {output_dir: runs/assistant}`.",
    ),
    # --- settings that do not exist
    "a misspelt key": (
        but(base_model="base_modle: hf:org/base"),
        "There is no setting `base_modle`. Did you mean base_model?\n"
        "`base_model` is missing: name the frozen model, such as `base_model: hf:ORG/NAME`.",
    ),
    "a misspelt key of a section": (
        but(train="train: {output_dir: out, learning_rte: 1e-4}"),
        "There is no setting `train.learning_rte`. Did you mean learning_rate?",
    ),
    "a misspelt key of another section": (
        but(train="train: {output_dir: out, max_lenght: 512}"),
        "There is no setting `train.max_lenght`. Did you mean data.max_length?",
    ),
    "a misspelt key of an adapter": (
        but(adapters="adapters:\n  own: {method: lora, target_module: all-linear}"),
        "There is no setting `adapters.own.target_module`. "
        "Did you mean target_modules or target_parameters?",
    ),
    "a misspelt key of an entry": (
        but(data="data:\n  train:\n    - a.jsonl\n    - {path: b.jsonl, weigth: 2}"),
        "There is no setting `data.train[1].weigth`. Did you mean weight?",
    ),
    "another tool's keys of an entry": (
        but(data="data:\n  train: [{path: a.jsonl, type: alpaca, num_samples: 9}]"),
        "`data.train[0].type` is other tools' name; here it is `data.train[0].format`.\n"
        "`data.train[0].num_samples` is other tools' name; here it is `data.train[0].max_rows`.",
    ),
    "a number for a key": (
        but("3: x"),
        "There is no setting `3`. Valid: adapters, base_model, data, revision, task_type, train.",
    ),
    "wrong sections": (
        but(
            "learning_rate: 1e-4\nmethod: lora\nweight: 3",
            train="train: {output_dir: out, max_length: 3, r: 8}",
        ),
        "`learning_rate` is in the wrong place; it belongs at `train.learning_rate`.\n"
        "`method` is in the wrong place; it belongs at `adapters.own.method`.\n"
        "`weight` is in the wrong place; it belongs in an entry of `data.train`, "
        "such as `{path: ..., weight: ...}`.\n"
        "`train.max_length` is in the wrong place; it belongs at `data.max_length`.\n"
        "`train.r` is in the wrong place; it belongs at `adapters.own.r`.",
    ),
    "LLaMA-Factory's keys": (
        but("template: qwen", data="data: {train: rows.jsonl, cutoff_len: 512, val_size: 0.1}"),
        f"`template` is LLaMA-Factory's and ms-swift's name, {NO_SUCH} (rows are rendered with "
        "the base model's own chat template; see that it is the one meant with "
        "`graft data preview`): leave it out.\n"
        "`data.cutoff_len` is LLaMA-Factory's name; here it is `data.max_length: 512`.\n"
        "`data.val_size` is LLaMA-Factory's name; here it is `data.eval_fraction: 0.1`.",
    ),
    "axolotl's keys": (
        but(
            "datasets:\n  - {path: org/set, type: alpaca}\nload_in_4bit: true",
            train="train: {output_dir: out, micro_batch_size: 2}",
        ),
        "`datasets` is axolotl's name; here it is "
        "`data.train: {path: 'hf:org/set', format: alpaca}`. Note: alpaca: the columns are the "
        "same, the prompt is the base model's chat template.\n"
        f"`load_in_4bit` is axolotl's and TRL's name, {NO_SUCH} (graft holds the base model in "
        "bfloat16 or float32, not in 4 or 8 bits: the adapter is trained as the same LoRA, but "
        "the run needs the memory of the whole model): leave it out.\n"
        "`train.micro_batch_size` is axolotl's name; here it is "
        "`train.per_device_train_batch_size: 2`.",
    ),
    "ms-swift's keys": (
        but("tuner_type: lora\ndataset: [AI-ModelScope/alpaca-gpt4-data-zh#500, a.jsonl]"),
        "`tuner_type` is ms-swift's name; here it is `adapters.own.method: lora`.\n"
        "`dataset` is ms-swift's and LLaMA-Factory's name; here it is "
        "`data.train: ['ms:AI-ModelScope/alpaca-gpt4-data-zh#500', a.jsonl]`.",
    ),
    "TRL's keys": (
        but("dataset_name: trl-lib/Capybara\nuse_peft: true\nassistant_only_loss: true"),
        "`dataset_name` is TRL's name; here it is `data.train: hf:trl-lib/Capybara`.\n"
        "`use_peft` is TRL's name; here it is `adapters.own.method: lora`.\n"
        f"`assistant_only_loss` is TRL's name, {NO_SUCH} (graft learns the answers only: "
        "`data.train_on: response`): leave it out.",
    ),
    "transformers' keys": (
        but(train="train: {output_dir: out, deepspeed: ds.json, report_to: wandb, fp16: true}"),
        f"`train.deepspeed` is transformers' name, {NO_SUCH} (graft trains on one device, in one "
        "process): leave it out.\n"
        f"`train.report_to` is transformers' name, {NO_SUCH} (graft writes train_log.jsonl and "
        "loss.png into the output folder, and talks to no tracker): leave it out.\n"
        f"`train.fp16` is transformers' name, {NO_SUCH} (graft holds the base model in bfloat16 "
        "or in float32: leave `train.bf16` out and the hardware decides): leave it out.",
    ),
    "a whole file of LLaMA-Factory": (
        "model_name_or_path: org/base\nstage: sft\nfinetuning_type: lora\n",
        "run.yaml is a file of LLaMA-Factory, not a run file; "
        "`graft convert run.yaml` makes one of it.",
    ),
    "a whole file of axolotl": (
        "base_model: org/base\nadapter: lora\nmicro_batch_size: 1\n",
        "run.yaml is a file of axolotl, not a run file; `graft convert run.yaml` makes one of it.",
    ),
    # --- adapters
    "an unknown method": (
        but(adapters="adapters:\n  own: {method: lorra, r: 8}"),
        "`adapters.own`: There is no method 'lorra'. Did you mean lora?",
    ),
    "no method": (
        but(adapters="adapters:\n  own: {r: 8}"),
        "`adapters.own.method` is missing.",
    ),
    "no virtual tokens": (
        but(adapters="adapters:\n  own: {method: prompt_tuning}"),
        "`adapters.own.num_virtual_tokens` is missing: say how many, such as "
        "`num_virtual_tokens: 20`.",
    ),
    "a setting of another method": (
        but(adapters="adapters:\n  own: {method: lora, num_virtual_tokens: 8}"),
        "`adapters.own.num_virtual_tokens` is a setting of "
        "prompt_tuning, p_tuning, prefix_tuning, not of lora.",
    ),
    "targets of the wrong kind": (
        but(adapters="adapters:\n  own: {method: lora, target_modules: 3, modules_to_save: head}"),
        "`adapters.own.modules_to_save` cannot be 'head': expected a list; write [head].\n"
        "`adapters.own.target_modules` cannot be 3: expected a list or text.",
    ),
    "a pattern of the wrong kind": (
        but(adapters="adapters:\n  own: {method: lora, rank_pattern: 3}"),
        "`adapters.own.rank_pattern` cannot be 3: expected a mapping.",
    ),
    "a rank that is none": (
        but(adapters="adapters:\n  own: {method: lora, r: 0}"),
        "`adapters.own`: LoraConfig: r must be an int of at least 1, not 0.",
    ),
    "two adapters in one folder": (
        but(adapters="adapters:\n  a: {method: lora}\n  A: {method: ia3}"),
        "`adapters`: 'a' and 'A' would be the same folder on some systems.",
    ),
    "two learning rates": (
        but(
            adapters="adapters:\n  a: {method: lora, learning_rate: 0.1, "
            "train: {learning_rate: 0.2}}"
        ),
        "adapter 'a' has two learning rates; give one.",
    ),
    "a learning rate beyond float32": (
        but(adapters="adapters:\n  a: {method: lora, learning_rate: 1e38}"),
        "`adapters.a.learning_rate` cannot be 1e+38: expected 1e+30 or less.",
    ),
    "settings of one adapter that do not exist": (
        but(adapters="adapters:\n  a: {method: lora, train: {sed: 1}, data: {max_len: 3}}"),
        "There is no setting `adapters.a.train.sed`. Did you mean seed?\n"
        "There is no setting `adapters.a.data.max_len`. Did you mean max_length?",
    ),
    "settings of one adapter of the wrong kind": (
        but(adapters="adapters:\n  a: {method: lora, train: {seed: x}, data: {max_length: y}}"),
        "`adapters.a.train.seed` cannot be 'x': expected a whole number.\n"
        "`adapters.a.data.max_length` cannot be 'y': expected a whole number.",
    ),
    "what all adapters share": (
        but(adapters="adapters:\n  a: {method: lora, train: {bf16: true}}"),
        "`adapters.a.train`: bf16 is the same for all adapters of a run; "
        "set it in the run's `train`.",
    ),
    "a grid": (
        but(more="grid: {train.seed: [1, 2]}"),
        "`grid` is a section for `graft compare`; this command takes one run.",
    ),
    "adapters in a list": (
        but(adapters="adapters:\n  - {method: lora}"),
        "`adapters` cannot be [{'method': 'lora'}]: "
        "expected a mapping such as `assistant: {method: lora}`.",
    ),
    "an adapter without a name": (
        but(adapters="adapters: {method: lora, r: 8, num_virtual_tokens: 2}", more="rank: 2"),
        "`rank` is other tools' name; here it is `adapters.NAME.r: 2`.\n"
        "`adapters` gives its adapter no name: write `adapters: {assistant: {method: ...}}`, "
        "with the settings below the name.\n"
        "`adapters.assistant.num_virtual_tokens` is a setting of "
        "prompt_tuning, p_tuning, prefix_tuning, not of lora.",
    ),
    "an adapter whose name is a number": (
        but(adapters="adapters:\n  1: {method: lora, num_virtual_tokens: 2}"),
        "`adapters.1.num_virtual_tokens` is a setting of "
        "prompt_tuning, p_tuning, prefix_tuning, not of lora.\n"
        "`adapters.1` cannot be 1: expected text.",
    ),
    "what graft fills in": (
        but(adapters="adapters:\n  own: {method: lora, task_type: SEQ_CLS}"),
        "`adapters.own.task_type` is in the wrong place; it belongs at `task_type`.",
    ),
    # --- values
    "a word for a number": (
        but(train="train: {output_dir: out, num_train_epochs: three}"),
        "`train.num_train_epochs` cannot be 'three': expected a number.",
    ),
    "numbers in quotes": (
        but(train="train: {output_dir: out, learning_rate: '1e-4 ', seed: '3'}"),
        "`train.learning_rate` cannot be '1e-4 ': expected a number; write 1e-4, without quotes.\n"
        "`train.seed` cannot be '3': expected a whole number; write 3, without quotes.",
    ),
    "a negative rate": (
        but(train="train: {output_dir: out, learning_rate: -1e-4}"),
        "`train.learning_rate` cannot be -0.0001: expected more than 0.",
    ),
    "yes for a number, a number for yes": (
        but(train="train: {output_dir: out, per_device_train_batch_size: true, bf16: 1}"),
        "`train.per_device_train_batch_size` cannot be true: expected a whole number.\n"
        "`train.bf16` cannot be 1: expected true or false.",
    ),
    "half a step": (
        but(train="train: {output_dir: out, max_steps: 0.5}"),
        "`train.max_steps` cannot be 0.5: expected a whole number.",
    ),
    "no number": (
        but(train="train: {output_dir: out, weight_decay: .nan, adam_epsilon: .inf}"),
        "`train.weight_decay` cannot be nan: expected a number that is finite.\n"
        "`train.adam_epsilon` cannot be inf: expected a number that is finite.",
    ),
    "a huge seed": (
        but(train="train: {output_dir: out, seed: 5000000000}"),
        "`train.seed` cannot be 5000000000: expected less than 4294967296.",
    ),
    "an unknown task": (
        but(task_type="task_type: CASUAL_LM"),
        "`task_type` cannot be 'CASUAL_LM'. Did you mean CAUSAL_LM?",
    ),
    "misspelt choices": (
        but(
            data="data: {train: rows.jsonl, format: alpacca}",
            train="train: {output_dir: out, lr_scheduler_type: cosin}",
        ),
        "`data.format` cannot be 'alpacca'. Did you mean alpaca?\n"
        "`train.lr_scheduler_type` cannot be 'cosin'. Did you mean cosine?",
    ),
    "both warm-ups": (
        but(train="train: {output_dir: out, warmup_ratio: 0.1, warmup_steps: 10}"),
        "`train`: give either warmup_ratio or warmup_steps, not both.",
    ),
    "both ways to evaluate": (
        but(data="data: {train: a.jsonl, eval: b.jsonl, eval_fraction: 0.1}"),
        "`data`: give either eval or eval_fraction, not both.",
    ),
    "entries of the wrong kind": (
        but(data="data:\n  train: [a.jsonl, {weight: -1}, 3]"),
        "`data.train[1].path` is missing.\n"
        "`data.train[1].weight` cannot be -1: expected more than 0.\n"
        "`data.train[2]` cannot be 3: expected a path, a mapping with `path`, or a list of these.",
    ),
    "a section that is a word": (
        but(train="train: out"),
        "`train` cannot be 'out': expected a mapping.",
    ),
    "everything at once": (
        but(
            "epochs: 3",
            adapters="adapters:\n  own: {method: lora, r: '8', rr: 3}",
            data="data: {train: rows.jsonl, format: jsonl, cutoff_len: 9}",
            train="train: {output_dir: out, seed: -1, sede: 1}",
        ),
        "`epochs` is other tools' name; here it is `train.num_train_epochs: 3`.\n"
        "There is no setting `train.sede`. Did you mean seed?\n"
        "`data.cutoff_len` is LLaMA-Factory's name; here it is `data.max_length: 9`.\n"
        "There is no setting `adapters.own.rr`. Did you mean r?\n"
        "`adapters.own.r` cannot be '8': expected a whole number; write 8, without quotes.\n"
        "`data.format` cannot be 'jsonl'. Valid: alpaca, auto, classification, messages, "
        "prompt_completion, question_answering, seq2seq, sharegpt, text, token_classification.\n"
        "`train.seed` cannot be -1: expected 0 or more.",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_said(folder, case):
    text, message = BROKEN[case]
    (folder / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_run_config("run.yaml")
    assert str(error.value) == message


def test_what_is_broken_was_whole(folder):
    (folder / "run.yaml").write_text(but())
    assert load_run_config("run.yaml").adapter.method == "lora"


def test_a_file_in_another_encoding(folder):
    (folder / "run.yaml").write_bytes("base_model: größe\n".encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load_run_config("run.yaml")
    assert str(error.value) == "The run file run.yaml cannot be read: save it as UTF-8 text."
    (folder / "run.yaml").write_text(but(), encoding="utf-8-sig")
    assert load_run_config("run.yaml").base_model == "hf:org/base"
