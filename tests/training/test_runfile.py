from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graft.config import PeftType
from graft.data.config import DataConfig
from graft.errors import ConfigError
from graft.training.adapters import settings_model
from graft.training.config import RunConfig, TrainConfig
from graft.training.dialects import TOOLS
from graft.training.runfile import (
    dump_run_config,
    load_run_config,
    parse_run_config,
    split_overrides,
)

TEXT = """
base_model: org/base
task_type: CAUSAL_LM
adapters:
  own: {method: lora, r: 8}
data:
  train: rows.jsonl
train:
  output_dir: out
  learning_rate: 1e-4
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text(TEXT)
    return path


def raw() -> dict:
    run = yaml.safe_load(TEXT)
    run["train"]["learning_rate"] = 1e-4
    return run


def test_reads_a_file(path):
    assert load_run_config(path) == parse_run_config(raw())
    assert load_run_config(path).train.learning_rate == 0.0001


def test_a_dumped_run_is_the_same_run(path):
    config = load_run_config(path, ["data.columns={prompt: Frage}", "adapters.own.r=3"])
    dumped = path.with_name("dumped.yaml")
    dumped.write_text(dump_run_config(config))
    assert load_run_config(dumped) == config


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("learning_rate=5E-2", "train", "learning_rate", 0.05),
        ("adam_epsilon=1.5e-7", "train", "adam_epsilon", 1.5e-7),
        ("bf16=true", "train", "bf16", True),
        ("eval_steps=", "train", "eval_steps", None),
        ("max_length=64", "data", "max_length", 64),
        ("data.train=[a.csv, b.csv]", "data", "train", ["a.csv", "b.csv"]),
        ("columns={prompt: q=a}", "data", "columns", {"prompt": "q=a"}),
    ],
)
def test_overrides(path, override, section, name, value):
    config = load_run_config(path, [override])
    changed = getattr(getattr(config, section), name)
    assert changed == value
    assert type(changed) is type(value)


def test_overrides_of_an_adapter(path):
    config = load_run_config(
        path, ["r=4", "adapters.own.lora_alpha=32", "target_modules=all-linear"]
    )
    assert config.adapter.model_extra == {
        "r": 4,
        "lora_alpha": 32,
        "target_modules": "all-linear",
    }


def test_the_last_override_wins(path):
    assert load_run_config(path, ["seed=1", "train.seed=2"]).train.seed == 2


def test_override_words():
    words = ["--seed", "1", "--train.max-steps=3", "r=4", "--bf16", "--warmup_ratio", "0.1", "--x"]
    assert split_overrides(words) == [
        "seed=1",
        "train.max_steps=3",
        "r=4",
        "bf16=true",
        "warmup_ratio=0.1",
        "x=true",
    ]
    assert split_overrides(["--max_steps", "-1"]) == ["max_steps=-1"]
    with pytest.raises(ConfigError, match="'seed' is no setting"):
        split_overrides(["seed", "1"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rte=1", ["`train.learning_rte`", "learning_rate"]),
        ("learning_rte=1", ["`learning_rte`", "learning_rate"]),
        ("train.max_length=1", ["`train.max_length`", "`data.max_length`"]),
        ("train=x", ["`train`", "data.train"]),
        ("adapters.own.rr=1", ["`adapters.own.rr`", "r?"]),
        ("adapters.on.r=1", ["`adapters.on.r`", "own"]),
        ("method=lorra", ["`adapters.own`", "lora"]),
        ("r=-1", ["`adapters.own`", "-1"]),
        ("learning_rate=fast", ["`train.learning_rate`", "'fast'"]),
        ("learning_rate=.inf", ["`train.learning_rate`", "inf"]),
        ("learning_rate=-1", ["`train.learning_rate`", "-1", "more than 0"]),
        ("task_type=CAUSAL", ["`task_type`", "CAUSAL_LM"]),
        ("lr_scheduler_type=cosin", ["`train.lr_scheduler_type`", "cosine"]),
        ("data.eval_fraction=1", ["`data.eval_fraction`", "1"]),
        ("data.train=3", ["`data.train`", "3"]),
        ("data=3", ["`data`", "3"]),
        ("base_model.x=3", ["`base_model`"]),
        ("output_dir=", ["output_dir is missing"]),
        ("seed=[1", ["`seed`", "YAML"]),
        ("cutoff_len=1", ["`cutoff_len`", "LLaMA-Factory", "`data.max_length: 1`"]),
        ("train.micro_batch_size=1", ["axolotl", "`train.per_device_train_batch_size: 1`"]),
        ("adapters.own.lora_rank=1", ["ms-swift", "`adapters.own.r: 1`"]),
        ("=3", ["'=3'"]),
    ],
)
def test_what_an_override_says_wrong(path, override, words):
    with pytest.raises(ConfigError) as error:
        load_run_config(path, [override])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


SECTIONS = {
    "": list(RunConfig.model_fields),
    "train": list(TrainConfig.model_fields),
    "data": list(DataConfig.model_fields),
    "adapters.own": list(settings_model(PeftType.LORA).model_fields),
}


@given(st.data())
def test_a_misspelt_key_is_named_with_its_neighbour(data):
    """One letter left out, doubled or swapped, at any level."""
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    name = data.draw(st.sampled_from([n for n in SECTIONS[section] if len(n) > 4]))
    at = data.draw(st.integers(0, len(name) - 2))
    swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    bad = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], swapped])
    )
    known = {n for names in SECTIONS.values() for n in names}.union(*TOOLS.values())
    if bad in known:
        return
    run = raw()
    place = run
    for part in filter(None, section.split(".")):
        place = place[part]
    place[bad] = 1
    with pytest.raises(ConfigError) as error:
        parse_run_config(run)
    assert bad in str(error.value)
    assert name in str(error.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    sorted({n for names in SECTIONS.values() for n in names} | {"own"})
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_stands_in_a_section_is_a_run_or_a_config_error(value):
    for section in ("train", "data", "adapters", "base_model", "task_type"):
        run = raw()
        run[section] = value
        with contextlib.suppress(ConfigError):
            parse_run_config(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2", ["line 2"]),
        ("", ["is empty"]),
        ("- a", ["holds a list"]),
        ("data: 1\ndata: 2", ["`data` is given twice", "lines 1 and 2"]),
        ("a: 2001-99-99", ["not valid YAML"]),
        ("\0", ["not valid YAML"]),
    ],
)
def test_a_file_that_is_no_run_file(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_run_config(path)
    for word in [*words, "run.yaml"]:
        assert word in str(error.value)


def test_every_problem_of_a_file_is_named():
    with pytest.raises(ConfigError) as error:
        parse_run_config({"base_model": "x", "train": {"sed": 1}})
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    for name in ("`task_type`", "`adapters`", "`data`", "`train.sed`", "output_dir"):
        assert any(name in line for line in lines)


def test_a_missing_file_with_its_neighbour(tmp_path):
    (tmp_path / "run.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"run\.yml.*Did you mean .*run\.yaml"):
        load_run_config(tmp_path / "run.yml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_config(tmp_path)
