from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from graft.errors import ConfigError
from graft.methods import METHODS
from graft.training.adapters import settings_model
from graft.training.config import TrainConfig
from graft.training.dialects import ADAPTER, TOOLS, Here, explain, foreign, shown, tool_of
from graft.training.dialects.rules import fraction, lost, renamed
from graft.training.faults import setting_paths
from graft.training.runfile import parse_run_config

RULES = {(tool, name): rule for tool, rules in TOOLS.items() for name, rule in rules.items()}
VALUES = [None, True, False, 1, 0, 0.1, 8, "lora", "a,b", "all", "none", "x/y", "2e-4", ["a"], {}]
OWN = {name for kind in METHODS for name in settings_model(kind).model_fields} | {"method"}


def section_of(run: dict, section: str) -> dict:
    for part in filter(None, section.split(".")):
        run = run[part]
    return run


def run_with() -> dict:
    return {
        "base_model": "x",
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora"}},
        "data": {"train": "rows.jsonl"},
        "train": {"output_dir": "out"},
    }


def test_every_name_leads_to_a_setting_or_to_a_reason():
    for (tool, name), rule in RULES.items():
        for value in VALUES:
            here = explain(rule, value)
            assert here.settings or here.lost or here.equal, (tool, name, value)
            for path in here.settings:
                section, _, leaf = path.rpartition(".")
                known = path in setting_paths() or (section == ADAPTER and leaf in OWN)
                assert known, (tool, name, path)


@pytest.mark.parametrize("section", ["", "train", "data", "adapters.own"])
def test_every_name_is_recognised_anywhere(section):
    own = {path.rpartition(".")[2] for path in setting_paths()} | OWN
    names = sorted({name for _, name in RULES} - own)
    run = run_with()
    section_of(run, section).update(dict.fromkeys(names, 1))
    with pytest.raises(ConfigError) as error:
        parse_run_config(run)
    lines = str(error.value).splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"`{section}.{name}`" if section else f"`{name}`")
        assert "name" in line


def test_all_of_training_arguments_is_known():
    theirs = set(inspect.signature(TrainingArguments).parameters)
    assert theirs - TrainConfig.model_fields.keys() <= TOOLS["transformers"].keys()


@given(
    st.sampled_from(sorted(RULES)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["path", "type", "data_files", "x"]), inner, max_size=3
            )
        ),
        max_leaves=4,
    ),
)
def test_any_value_has_an_answer(key, value):
    here = explain(RULES[key], value)
    assert isinstance(here, Here)
    assert "\n" not in str(foreign(key[1], value, "own", None))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("finetuning_type", "lora", "`adapters.own.method: lora`"),
        ("lora_target", "all", "`adapters.own.target_modules: all-linear`"),
        ("lora_target", "q_proj,v_proj", "`adapters.own.target_modules: [q_proj, v_proj]`"),
        ("val_size", 0.1, "`data.eval_fraction: 0.1`"),
        ("disable_gradient_checkpointing", True, "`train.gradient_checkpointing: false`"),
        ("train_on_prompt", True, "`data.train_on: all`"),
        ("bf16_full_eval", True, "no such setting"),
        ("cosine_min_lr_ratio", 0.1, "`train.lr_scheduler_kwargs: {min_lr_rate: 0.1}`"),
        ("sequence_len", 2048, "`data.max_length: 2048`"),
        ("train_type", "lora", "`adapters.own.method: lora`"),
        ("torch_dtype", "bfloat16", "`train.bf16: true`"),
        ("loss_scale", "all", "`data.train_on: all`"),
        ("deepspeed", "ds_z3.json", "one device"),
        ("quantization_bit", 4, "not in 4 or 8 bits"),
        ("packing", True, "pads rows"),
        ("report_to", "wandb", "no tracker"),
        ("hub_token", "hf_verysecret", "holds no secrets"),
        ("lr", 1e-3, "`train.learning_rate: 0.001`"),
    ],
)
def test_values_are_told_in_grafts_words(key, value, expected):
    sentence = foreign(key, value, "own", None)
    assert expected in str(sentence)
    assert "verysecret" not in str(sentence)


def test_of_a_name_with_two_meanings_the_likelier_comes_first():
    """LLaMA-Factory's data sets have names; ms-swift's are ids on ModelScope."""
    ids = "AI-ModelScope/alpaca#500"
    swift = foreign("dataset", ids, "own", tool_of({"dataset": ids, "tuner_type": "lora"}))
    assert "`data.train: ms:AI-ModelScope/alpaca#500`" in str(swift)
    factory = foreign("dataset", "a,b", "own", tool_of({"finetuning_type": "lora"}))
    assert "`data.train: [a, b]`" in str(factory)


def test_which_tool_a_file_is_of():
    assert tool_of({"finetuning_type": "lora", "learning_rate": 1}) == "LLaMA-Factory"
    assert tool_of({"micro_batch_size": 1, "adapter": "lora"}) == "axolotl"
    assert tool_of({"tuner_type": "lora"}) == "ms-swift"
    assert tool_of({"assistant_only_loss": True}) == "TRL"
    assert tool_of(run_with()) is None
    assert foreign("base_model", "x", "own", None) is None


def test_rules():
    assert renamed("a", values={True: "yes"})(True) == Here({"a": "yes"})
    assert renamed("a")(None).settings == {}
    assert lost("why")(False).lost == ""
    assert lost("why", off=("auto",))("auto").lost == ""
    assert lost("why")("on") == Here(lost="why")
    assert fraction("a", "why")(0.5) == Here({"a": 0.5})
    assert fraction("a", "why")(100) == Here(lost="why")
    assert shown({"a": [1, "b"], "c": None}) == "{a: [1, b], c: null}"
