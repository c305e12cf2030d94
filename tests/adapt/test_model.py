"""The model with its adapters: PEFT's names, arguments and what they refuse."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from torch import nn

from conformance.families import FAMILIES
from graft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from graft.config import TaskType
from graft.errors import ConfigError

MODELS = {family.name: family for family in FAMILIES}
IDS = torch.tensor([[5, 9, 33], [7, 2, 60]])


def lora(**values) -> LoraConfig:
    chosen = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False}
    return LoraConfig(**{**chosen, **values})


def prompt(count: int = 3) -> PromptTuningConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)


@pytest.fixture
def model() -> PeftModel:
    model = get_peft_model(MODELS["Llama"].model(), lora()).eval()
    model.add_adapter("soft", prompt())
    return model


# --- arguments ------------------------------------------------------------------------------------


def test_a_revision_of_the_base_is_noted():
    config = lora()
    model = get_peft_model(MODELS["Llama"].model(), config, revision="v2")
    assert model.active_peft_config.revision == "v2"
    assert config.revision is None


@pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_adapters_are_in_full_precision_unless_told(autocast, dtype):
    base = MODELS["Llama"].model().bfloat16()
    model = get_peft_model(base, lora(), autocast_adapter_dtype=autocast)
    assert {p.dtype for p in model.adapter("default").parameters()} == {dtype}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_an_adapter_can_have_another_name():
    model = get_peft_model(MODELS["Llama"].model(), lora(), "mine", mixed=True)
    assert model.active_adapter == "mine"


# --- forward --------------------------------------------------------------------------------------


def test_arguments_by_position_and_by_name(model):
    mask = torch.ones_like(IDS)
    assert torch.equal(model(IDS, mask).logits, model(input_ids=IDS, attention_mask=mask).logits)


def test_rows_and_names_must_be_as_many(model):
    with pytest.raises(ConfigError, match="3 adapter_names for 2 rows; give one per row"):
        model(IDS, adapter_names=["default"] * 3)


def test_a_forward_needs_rows(model):
    with pytest.raises(ConfigError, match="needs at least one tensor, such as input_ids"):
        model()
    model.set_adapter("soft")
    with pytest.raises(ConfigError, match="need input_ids or inputs_embeds"):
        model(attention_mask=torch.ones_like(IDS))


@pytest.mark.parametrize("names", [None, ["soft", "default"]])
def test_a_tuple_is_given_where_it_is_asked_for(model, names):
    model.set_adapter("soft")
    out = model(IDS, labels=IDS, return_dict=False, adapter_names=names)
    assert type(out) is tuple
    whole = model(IDS, labels=IDS, adapter_names=names)
    assert torch.equal(out[0], whole.loss)
    assert torch.equal(out[1], whole.logits)


def test_the_signature_is_the_base_models():
    model = get_peft_model(MODELS["Bert"].model(TaskType.SEQ_CLS), LoraConfig(task_type="SEQ_CLS"))
    own = inspect.signature(type(model).forward).parameters
    base = inspect.signature(type(model.base_model).forward).parameters
    assert [name for name in own if name != "adapter_names"] == list(base)
    assert isinstance(model, PeftModel)
    assert model.task_type() is TaskType.SEQ_CLS
    assert model.get_base_model() is model.base_model


def test_a_class_of_ones_own_stays():
    class Mine(PeftModel):
        pass

    assert type(Mine(MODELS["Llama"].model(), lora())) is Mine


# --- generate -------------------------------------------------------------------------------------


def test_generate_needs_something_to_go_on(model):
    expected = MODELS["Llama"].model().generate(max_new_tokens=2, do_sample=False)
    with model.disable_adapter():  # the base model starts from its own first token
        assert torch.equal(model.generate(max_new_tokens=2, do_sample=False), expected)
    model.set_adapter("soft")
    with pytest.raises(ConfigError, match="needs input_ids or inputs_embeds"):
        model.generate(max_new_tokens=2)


def test_the_rows_are_those_of_the_text_whatever_comes_first(model):
    model.set_adapter("soft")
    positions = torch.arange(IDS.shape[1])[None]
    expected = model(IDS).logits
    given = model(position_ids=positions, input_ids=IDS).logits
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "soft"])
def test_the_ways_to_give_ids(model, name):
    model.set_adapter(name)
    options = {"max_new_tokens": 3, "do_sample": False}
    expected = model.generate(input_ids=IDS, **options)
    assert torch.equal(model.generate(IDS, **options), expected)
    assert torch.equal(model.generate(inputs=IDS, **options), expected)
    assert expected.shape[1] > IDS.shape[1]
    assert torch.equal(expected[:, : IDS.shape[1]], IDS)


def test_pads_are_found_where_no_mask_is_given(model):
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], dim=1)
    mask = (padded != 0).long()
    for name in ("default", "soft"):
        model.set_adapter(name)
        options = {"max_new_tokens": 3, "do_sample": False}
        expected = model.generate(padded, attention_mask=mask, **options)
        assert torch.equal(model.generate(padded, **options), expected)
        # A pad that is an end as well may be text, so that nothing is masked.
        everything = model.generate(padded, attention_mask=torch.ones_like(mask), **options)
        assert torch.equal(model.generate(padded, eos_token_id=[0], **options), everything)


# --- files ----------------------------------------------------------------------------------------


def test_other_processes_do_not_write(model, tmp_path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_not_written(model, tmp_path):
    with pytest.raises(ConfigError, match="safetensors only; leave safe_serialization out"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    model.save_pretrained(tmp_path, selected_adapters=["soft"], safe_serialization=True)
    assert [path.name for path in tmp_path.iterdir()] == ["soft"]
    with pytest.raises(ConfigError, match=r"no adapter 'sfot'.*soft"):
        model.save_pretrained(tmp_path, selected_adapters=["sfot"])


def test_arguments_that_do_not_exist_are_refused_with_the_nearest(model, tmp_path):
    with pytest.raises(ConfigError, match=r"'selected_adapter'\. Did you mean selected_adapters"):
        model.save_pretrained(tmp_path, selected_adapter=["soft"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'is_trainble'\. Did you mean is_trainable"):
        model.load_adapter(tmp_path, "again", is_trainble=True)
    # Where tensors go is PEFT's question; here they are where their layers are.
    model.load_adapter(tmp_path, "again", torch_dtype=torch.float16, device_map="auto")
    assert {p.dtype for p in model.adapter("again").parameters()} == {torch.float32}
    model.load_adapter(tmp_path, "other", subfolder="soft")
    assert model.peft_config["other"].peft_type == "PROMPT_TUNING"


def test_a_loaded_adapter_is_active_if_none_was(model, tmp_path):
    model.save_pretrained(tmp_path)
    other = PeftModel(MODELS["Llama"].model())
    other.load_adapter(tmp_path / "soft", "a")
    assert other.active_adapter == "a"
    other.load_adapter(tmp_path, "b")
    assert other.active_adapter == "a"


def test_all_adapters_are_uploaded(model, monkeypatch):
    calls: dict[str, dict] = {}

    def create(self: HfApi, repo_id: str, **kwargs) -> None:
        calls["create"] = {"repo_id": repo_id, **kwargs}

    def upload(self: HfApi, folder_path: str, **kwargs) -> str:
        found = sorted(str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*.json"))
        calls["upload"] = {"files": found, **kwargs}
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert model.push_to_hub("org/name", private=True, commit_message="first") == "done"
    assert calls["create"] == {"repo_id": "org/name", "private": True, "exist_ok": True}
    assert calls["upload"] == {
        "files": ["adapter_config.json", "soft/adapter_config.json"],
        "repo_id": "org/name",
        "commit_message": "first",
    }


# --- prompts --------------------------------------------------------------------------------------


def test_the_virtual_tokens_of_a_batch(model):
    model.set_adapter("soft")
    table = model.adapter("soft").virtual_tokens.prompt_embeddings
    assert torch.equal(model.get_prompt(batch_size=2), torch.stack([table, table]))
    model.add_adapter("prefix", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert model.get_prompt(3, "prefix").shape == (2, 2, 3, 2, 4, 8)  # [L, 2, B, H, N, K]
    with pytest.raises(ConfigError, match="'default' has no virtual tokens"):
        model.get_prompt(2, "default")


# --- any module -----------------------------------------------------------------------------------


def test_any_module_gives_back_its_own_kind_of_output():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x), x.sum()

    config = LoraConfig(target_modules=["layer"], init_lora_weights=False)
    model = get_peft_model(Pair(), config)
    y, total = model(torch.ones(2, 4))
    assert y.shape == (2, 3)
    assert total == 8


def test_as_many_places_as_rows_are_not_taken_for_rows(model):
    rows = ["default", "__base__", "default"]  # do not stand together
    ids = torch.arange(3, 18).view(3, 5)
    kept = torch.tensor([0, 2, 4])
    expected = model(ids, adapter_names=rows).logits[:, kept]
    given = model(ids, adapter_names=rows, logits_to_keep=kept).logits
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
