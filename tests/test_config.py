"""Configs are data: checked when made, never changed by others, written as PEFT writes them."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from enum import StrEnum

import pytest

from conformance.families import FAMILIES
from graft import get_peft_model
from graft.config import CONFIG_NAME, PeftConfig, PeftType, TaskType, as_enum
from graft.errors import CheckpointError, ConfigError
from graft.methods import (
    METHODS,
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)

CONFIGS = [method.config_class for method in METHODS.values()]
each_config = pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)


LLAMA = FAMILIES[0]


def needed(kind: type[PeftConfig]) -> dict:
    return {"num_virtual_tokens": 4} if kind.is_prompt_learning else {}


def make(kind: type[PeftConfig], **values) -> PeftConfig:
    return kind(**{**needed(kind), **values})


# --- fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "nearest"),
    [
        (LoraConfig, "target_module", "target_modules"),
        (LoraConfig, "lora_aplha", "lora_alpha"),
        (LoraConfig, "rank_patern", "rank_pattern"),
        (IA3Config, "feedforward_module", "feedforward_modules"),
        (BitFitConfig, "exclude_module", "exclude_modules"),
        (PromptTuningConfig, "num_virtual_token", "num_virtual_tokens"),
        (PromptEncoderConfig, "encoder_hidden_dim", "encoder_hidden_size"),
        (PrefixTuningConfig, "prefix_project", "prefix_projection"),
    ],
)
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(kind, given, nearest):
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no field '{given}'.*{nearest}"):
        make(kind, **{given: 1})


PROMPTS = (PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        *((kind, {"num_virtual_tokens": 0}, "an int of at least 1, not 0") for kind in PROMPTS),
        *(
            (kind, {"num_virtual_tokens": None}, "num_virtual_tokens is missing")
            for kind in PROMPTS
        ),
        (PromptTuningConfig, {"num_virtual_tokens": "8"}, "num_virtual_tokens.*'8'"),
        (PromptTuningConfig, {"num_virtual_tokens": True}, "num_virtual_tokens.*True"),
        (PromptTuningConfig, {"prompt_tuning_init": "SAMPLE"}, "SAMPLE_VOCAB"),
        (PromptTuningConfig, {"prompt_tuning_init": "TEXT"}, "needs prompt_tuning_init_text"),
        (PromptEncoderConfig, {"encoder_reparameterization_type": "GRU"}, "LSTM"),
        (PromptEncoderConfig, {"encoder_hidden_size": 0}, "encoder_hidden_size.*at least 1"),
        (PromptEncoderConfig, {"encoder_num_layers": 0}, "encoder_num_layers.*at least 1"),
        (PromptEncoderConfig, {"encoder_dropout": 1.0}, "encoder_dropout must be below 1"),
        (PromptEncoderConfig, {"encoder_dropout": -0.1}, "encoder_dropout.*a float of at least 0"),
        (PrefixTuningConfig, {"init_weights": "zeros"}, "zero"),
        (PrefixTuningConfig, {"encoder_hidden_size": 1.5}, "encoder_hidden_size must be an int"),
        (PrefixTuningConfig, {"init_weights": "vocab", "prefix_projection": True}, "projection"),
        (PrefixTuningConfig, {"init_weights": "text"}, "init_text go together"),
        (PrefixTuningConfig, {"init_text": "a text"}, "init_text go together"),
        (LoraConfig, {"r": 0}, "r must be an int of at least 1, not 0"),
        (LoraConfig, {"r": 2.5}, "r must be an int"),
        (LoraConfig, {"lora_alpha": "16"}, "lora_alpha must be a float, not '16'"),
        (LoraConfig, {"lora_dropout": 1}, "lora_dropout must be below 1"),
        (LoraConfig, {"init_lora_weights": "pisa"}, "'pisa' is not supported.*pissa"),
        (LoraConfig, {"init_lora_weights": "pissa", "lora_dropout": 0.1}, "needs lora_dropout=0"),
        (LoraConfig, {"bias": "some"}, "none, all, lora_only"),
        (LoraConfig, {"lora_bias": True, "use_dora": True}, "do not go together"),
        (LoraConfig, {"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] cannot be 0"),
        (LoraConfig, {"rank_pattern": {"q_proj": 2.5}}, "cannot be 2.5"),
        (LoraConfig, {"rank_pattern": {"(": 2}}, "is no regular expression"),
        (LoraConfig, {"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern.*cannot be '2'"),
        (LoraConfig, {"target_modules": []}, "target_modules is empty"),
        (LoraConfig, {"target_modules": 3}, "must be a list of names or a pattern, not 3"),
        (LoraConfig, {"exclude_modules": ""}, "exclude_modules is empty"),
        (LoraConfig, {"layers_pattern": "h"}, "without layers_to_transform"),
        (LoraConfig, {"layers_to_transform": [0], "target_modules": ".*q"}, "as a list of names"),
        (
            IA3Config,
            {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]},
            r"among target_modules.*\['down_proj'\] are not",
        ),
        (IA3Config, {"feedforward_modules": "("}, "is not a regular expression"),
        *((kind, {"task_type": "CAUSAL"}, "CAUSAL_LM") for kind in CONFIGS),
        *(
            (kind, {"modules_to_save": "score"}, r"a list of names; write \['score'\]")
            for kind in CONFIGS
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused(kind, values, said):
    with pytest.raises(ConfigError, match=said):
        make(kind, **values)


def test_values_become_what_they_stand_for():
    config = LoraConfig(
        task_type="causal_lm",
        target_modules={"v_proj", "q_proj"},
        modules_to_save=["score", "score"],
        init_lora_weights="True",
    )
    assert config.task_type is TaskType.CAUSAL_LM
    assert config.target_modules == ["q_proj", "v_proj"]
    assert config.modules_to_save == ["score"]
    assert config.init_lora_weights is True
    ia3 = IA3Config(target_modules=("k", "wo"), feedforward_modules=("wo",))
    assert ia3.feedforward_modules == ["wo"]


def test_as_enum_takes_members_and_names_in_any_case():
    class Color(StrEnum):
        RED = "red"
        BLUE = "blue"

    assert as_enum(Color, Color.RED, "color") is Color.RED
    assert as_enum(Color, "RED", "color") is Color.RED
    with pytest.raises(ConfigError, match=r"color='bleu' is not known. Did you mean blue"):
        as_enum(Color, "bleu", "color")


# --- configs are data -----------------------------------------------------------------------------


@each_config
def test_attaching_does_not_change_a_config(kind):
    config = make(kind, task_type="CAUSAL_LM")
    before = copy.deepcopy(config)
    model = get_peft_model(LLAMA.model(), config)
    assert config == before
    assert vars(config) == vars(before)
    resolved = model.peft_config["default"]
    assert resolved is not config
    if not kind.is_prompt_learning:
        assert config.target_modules is None
        assert resolved.target_modules


@each_config
def test_a_config_can_be_copied_pickled_and_compared(kind):
    config = make(kind, task_type="SEQ_CLS", modules_to_save=["score"])
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert type(other) is kind
    other = config.changed(task_type=TaskType.CAUSAL_LM)
    assert other != config
    assert config.task_type is TaskType.SEQ_CLS


@each_config
def test_a_changed_copy_shares_nothing(kind):
    config = make(kind, modules_to_save=["score"])
    config.changed().modules_to_save.append("other")
    assert config.modules_to_save == ["score"]


@each_config
def test_defaults_name_every_field(kind):
    assert list(kind.defaults()) == [field.name for field in fields(kind)]
    assert kind.defaults()["inference_mode"] is False


def test_defaults_that_are_made_are_made_anew():
    LoraConfig.defaults()["rank_pattern"]["q_proj"] = 1
    assert LoraConfig.defaults()["rank_pattern"] == {}


# --- JSON -----------------------------------------------------------------------------------------


@each_config
def test_the_file_is_json_with_sorted_keys_and_plain_values(kind, tmp_path):
    config = make(kind, task_type="CAUSAL_LM", base_model_name_or_path="org/模型")
    config.save_pretrained(tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / CONFIG_NAME).read_text(encoding="utf-8")
    raw = json.loads(text)
    assert text == json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert list(raw) == sorted(raw)
    assert raw["task_type"] == "CAUSAL_LM"
    assert raw["base_model_name_or_path"] == "org/模型"
    assert not raw.keys() & kind.private_fields


@each_config
def test_what_is_saved_is_read(kind, tmp_path):
    config = make(kind, task_type="CAUSAL_LM", revision="main")
    config.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    assert type(read) is kind
    assert read.to_dict() == config.to_dict()


def test_sets_and_tuples_become_lists():
    config = LoraConfig(target_modules=["q"])
    config.target_modules, config.layers_to_transform = {"b", "a"}, (1, 0)
    raw = config.to_dict()
    assert raw["target_modules"] == ["a", "b"]
    assert raw["layers_to_transform"] == [1, 0]


def test_an_unknown_key_is_refused_with_the_nearest():
    raw = {"peft_type": "LORA", "r": 4, "target_module": ["q_proj"]}
    with pytest.raises(ConfigError, match=r"unknown key 'target_module'.*target_modules"):
        PeftConfig.from_dict(raw)


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_a_key_of_a_newer_peft_that_is_off_is_kept(value):
    raw = {"peft_type": "LORA", "r": 4, "use_newest_thing": value}
    config = PeftConfig.from_dict(raw)
    config.require_supported()
    assert config.to_dict()["use_newest_thing"] == value


def test_a_feature_of_peft_that_graft_lacks_is_kept_and_refused_when_used():
    raw = {"peft_type": "LORA", "r": 4, "kasa_config": {"beta": 1e-4}, "task_type": "CAUSAL_LM"}
    config = PeftConfig.from_dict(raw)
    assert config.to_dict()["kasa_config"] == {"beta": 1e-4}
    with pytest.raises(ConfigError, match=r"LoraConfig: kasa_config=\{.*\} is not supported"):
        get_peft_model(LLAMA.model(), config)


@pytest.mark.parametrize("given", ["ADALORA", "lora", None])
def test_another_peft_type_is_refused_and_the_supported_are_named(given):
    with pytest.raises(ConfigError) as caught:
        PeftConfig.from_dict({"peft_type": given})
    assert f"peft_type {given!r} is not supported" in str(caught.value)
    assert all(kind.value in str(caught.value) for kind in PeftType)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no adapter_config\.json"):
        PeftConfig.from_pretrained(tmp_path)
    path = tmp_path / CONFIG_NAME
    path.write_text("{'r': 8}")
    with pytest.raises(CheckpointError, match="is not JSON"):
        PeftConfig.from_pretrained(tmp_path)
    path.write_text("[8]")
    with pytest.raises(CheckpointError, match="holds a list, not an adapter config"):
        PeftConfig.from_pretrained(tmp_path)


@each_config
def test_a_class_is_found_by_its_type(kind):
    assert PeftConfig.class_of(kind.peft_type) is kind
    made = PeftConfig.from_peft_type(peft_type=kind.peft_type.value, **needed(kind))
    assert made == make(kind)


def test_from_peft_type_names_what_there_is():
    with pytest.raises(ConfigError, match=r"peft_type='LOAR' is not known. Did you mean LORA"):
        PeftConfig.from_peft_type(peft_type="LOAR")
    with pytest.raises(ConfigError, match="peft_type=None is not known"):
        PeftConfig.from_peft_type()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_is_true_or_false(value):
    with pytest.raises(ConfigError, match="LoraConfig: use_dora must be True or False, not"):
        LoraConfig(use_dora=value)


def test_no_layers_at_all_means_all_of_them_as_in_peft():
    assert LoraConfig(target_modules=["a"], layers_to_transform=[]).layers_to_transform is None


def test_targets_are_names():
    with pytest.raises(ConfigError, match=r"a list of names or a pattern, not \[3\]"):
        LoraConfig(target_modules=[3])
