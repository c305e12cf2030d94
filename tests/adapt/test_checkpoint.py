"""Adapters on disk: nothing is skipped in silence, and a failure leaves nothing half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conformance.families import FAMILIES
from graft import PeftModel, get_peft_model
from graft.adapt import checkpoint
from graft.adapt.checkpoint import STATE_NAME, WEIGHTS_NAME
from graft.config import CONFIG_NAME, TaskType
from graft.errors import CheckpointError, ConfigError, GraftError, TargetError
from graft.methods import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
)

LLAMA, BERT = FAMILIES[0], next(family for family in FAMILIES if family.name == "Bert")
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA adapter for Llama on disk."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj", "v_proj"],
        base_model_name_or_path="org/small-llama",
    )
    get_peft_model(LLAMA.model(), config).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, base: nn.Module | None = None, **values: Any) -> PeftModel:
    return PeftModel.from_pretrained(base or LLAMA.model(), folder, **values)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- tensors and homes ----------------------------------------------------------------------------


def test_a_tensor_without_a_home_is_refused(folder):
    change_tensors(folder, lambda t: t.update({Q0.replace("q_proj", "q_prj"): t[Q0].clone()}))
    said = r"the tensor '.*q_prj.*' has no home in this model\. Did you mean .*q_proj.*small-llama"
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_several_are_counted(folder):
    def add(tensors: dict[str, Tensor]) -> None:
        for name in ("other.a", "other.b", "other.c"):
            tensors[f"base_model.model.{name}"] = torch.zeros(1)

    change_tensors(folder, add)
    with pytest.raises(CheckpointError, match=r"'.*other.a' \(and 2 more\) have no home"):
        load(folder)


def test_a_home_without_a_tensor_is_refused(folder):
    change_tensors(folder, lambda t: t.pop(Q0))
    with pytest.raises(CheckpointError, match=rf"lacks '{Q0}'\. It was trained on org/small-llama"):
        load(folder)


def test_tensors_of_other_layers_than_the_config_says_are_refused(folder):
    change_config(folder, target_modules=["k_proj", "v_proj"])
    with pytest.raises(CheckpointError, match=r"q_proj.* no home"):
        load(folder)


def test_an_adapter_of_a_deeper_model_is_refused(folder):
    def deeper(tensors: dict[str, Tensor]) -> None:
        for key, tensor in list(tensors.items()):
            tensors[key.replace("layers.0", "layers.2")] = tensor.clone()

    change_tensors(folder, deeper)
    with pytest.raises(CheckpointError, match=r"layers\.2\..*no home"):
        load(folder)


def test_an_adapter_of_a_wider_model_is_refused_with_both_shapes(folder):
    change_tensors(folder, lambda t: t.update({Q0: torch.zeros(2, 64)}))
    with pytest.raises(CheckpointError, match=r"q_proj.* has shape \(2, 64\), .* needs \(2, 32\)"):
        load(folder)


def test_another_rank_than_the_config_says_is_refused(folder):
    change_config(folder, r=4)
    with pytest.raises(CheckpointError, match=r"\(2, 32\), the model needs \(4, 32\)"):
        load(folder)


def test_a_head_without_its_tensors_is_refused(tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    get_peft_model(BERT.model(TaskType.SEQ_CLS), config).save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: t.pop("base_model.model.classifier.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 'base_model\.model\.classifier\.weight'"):
        load(tmp_path, BERT.model(TaskType.SEQ_CLS))


def test_an_adapter_for_another_architecture_is_refused(folder):
    with pytest.raises(TargetError, match="'q_proj' matches no layer of the model"):
        load(folder, BERT.model())


def test_a_prompt_of_another_length_is_refused(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(LLAMA.model(), config).save_pretrained(tmp_path)
    change_config(tmp_path, num_virtual_tokens=5)
    with pytest.raises(CheckpointError, match=r"\(4, 32\), the model needs \(5, 32\)"):
        load(tmp_path)


def test_a_failed_load_leaves_the_model_as_it_was(folder):
    model = get_peft_model(LLAMA.model(), LoraConfig(task_type="CAUSAL_LM"), "first")
    sites, hooks = dict(model.sites), count_hooks(model)
    change_tensors(folder, lambda t: t.pop(Q0))
    with pytest.raises(CheckpointError):
        model.load_adapter(folder, "second")
    assert list(model.adapters) == ["first"]
    assert model.sites == sites
    assert count_hooks(model) == hooks
    assert model.active_adapters == ["first"]


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- configs --------------------------------------------------------------------------------------


def test_an_unknown_key_in_the_config_is_refused_with_the_nearest(folder):
    change_config(folder, lora_aplha=4)
    with pytest.raises(
        ConfigError, match=r"unknown key 'lora_aplha' \(= 4\)\. Did you mean lora_a"
    ):
        load(folder)


def test_another_methods_adapter_is_refused(folder):
    change_config(folder, peft_type="VERA")
    with pytest.raises(ConfigError, match=r"peft_type 'VERA' is not supported\. Supported: .*LORA"):
        load(folder)


# --- files ----------------------------------------------------------------------------------------


def test_a_git_lfs_pointer_is_no_weights(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (folder / WEIGHTS_NAME).write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer.*git lfs pull"):
        load(folder)
    (folder / WEIGHTS_NAME).unlink()
    (folder / "adapter_model.bin").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_that_is_cut_short_is_refused(folder, kept):
    whole = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match=rf"cut short .*\({len(whole[:kept]):,} bytes\)"):
        load(folder)


def test_missing_weights_are_named(folder):
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"no weights: expected adapter_model.safetensors"):
        load(folder)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no adapter folder"):
        load(tmp_path / "nowhere")


class Payload:
    """Stands for any object that a pickle may hold."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight": Payload()}, "broken or holds more than weights"),
        ([torch.zeros(1)], "holds no dict of tensors"),
        ({"weight": 3}, "holds no dict of tensors"),
    ],
)
def test_a_pickle_is_never_trusted(folder, content, said):
    (folder / WEIGHTS_NAME).unlink()
    torch.save(content, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=said):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_an_old_file_that_is_broken_is_refused(folder, content):
    (folder / WEIGHTS_NAME).unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="broken or holds more than weights"):
        load(folder)


# --- copies of the base model's own ---------------------------------------------------------------


def test_an_embedding_that_peft_saved_again_is_compared(tmp_path):
    base = LLAMA.model()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"])
    get_peft_model(LLAMA.model(), config).save_pretrained(tmp_path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    own = base.get_input_embeddings().weight.detach()
    change_tensors(tmp_path, lambda t: t.update({key: own.clone()}))
    load(tmp_path)
    for other in (own + 1, torch.cat([own, own])):
        change_tensors(tmp_path, lambda t, other=other: t.update({key: other}))
        with pytest.raises(CheckpointError, match=r"another one .*resize the embeddings"):
            load(tmp_path)


# --- encoders of virtual tokens -------------------------------------------------------------------

ENCODED = [
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_dropout=0.3),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True),
]
each_encoded = pytest.mark.parametrize("config", ENCODED, ids=lambda c: type(c).__name__)


@each_encoded
def test_an_encoder_lies_beside_and_learns_on(config: PromptLearningConfig, tmp_path):
    model = get_peft_model(LLAMA.model(), config).train()
    model.save_pretrained(tmp_path)
    assert (tmp_path / STATE_NAME).is_file()
    again = load(tmp_path, is_trainable=True)
    first, second = (m.adapter("default").virtual_tokens for m in (model, again))
    assert torch.equal(first.settled_rows(), second.settled_rows())
    assert all(p.requires_grad for p in second.parameters())
    assert second.state_dict().keys() == first.state_dict().keys()


@each_encoded
def test_an_adapter_without_its_encoder_does_not_learn_on(config, tmp_path):
    get_peft_model(LLAMA.model(), config).save_pretrained(tmp_path)
    (tmp_path / STATE_NAME).unlink()
    with pytest.raises(ConfigError, match=f"without the encoder .*{STATE_NAME}"):
        load(tmp_path, is_trainable=True)
    model = load(tmp_path)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / STATE_NAME).exists()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_encoder_of_another_adapter_is_refused(tmp_path):
    for name in ("one", "two"):
        get_peft_model(LLAMA.model(), ENCODED[0]).save_pretrained(tmp_path / name)
    (tmp_path / "one" / STATE_NAME).write_bytes((tmp_path / "two" / STATE_NAME).read_bytes())
    with pytest.raises(CheckpointError, match="from different runs"):
        load(tmp_path / "one")


def test_a_plain_adapter_leaves_no_encoder_of_an_earlier_one(tmp_path):
    get_peft_model(LLAMA.model(), ENCODED[0]).save_pretrained(tmp_path)
    plain = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(LLAMA.model(), plain).save_pretrained(tmp_path)
    assert not (tmp_path / STATE_NAME).exists()
    load(tmp_path)


# --- writing --------------------------------------------------------------------------------------


def test_a_loaded_adapter_is_for_use_unless_it_shall_learn(folder):
    assert not any(p.requires_grad for p in load(folder).parameters())
    model = load(folder, is_trainable=True)
    assert all(p.requires_grad for p in model.adapter("default").parameters())
    assert not any(p.requires_grad for p in model.base_model.parameters())
    assert not model.active_peft_config.inference_mode
    assert json.loads((folder / CONFIG_NAME).read_text())["inference_mode"] is True


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "taken"
    path.write_text("")
    model = get_peft_model(LLAMA.model(), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(CheckpointError, match="is a file; an adapter is saved into a folder"):
        model.save_pretrained(path)


def test_the_config_comes_last_so_that_it_vouches(tmp_path, monkeypatch):
    def fail(path: Path, content: bytes) -> None:
        raise OSError("disk full")

    model = get_peft_model(LLAMA.model(), LoraConfig(task_type="CAUSAL_LM"))
    monkeypatch.setattr(checkpoint, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GraftError):
        load(tmp_path)


def test_the_model_card_names_a_base_model_of_a_hub_and_no_path_of_this_machine(tmp_path):
    for name, base in (("hub", "org/small-llama"), ("folder", str(tmp_path / "secret"))):
        config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base)
        get_peft_model(LLAMA.model(), config).save_pretrained(tmp_path / name)
    assert "base_model: org/small-llama" in (tmp_path / "hub" / "README.md").read_text()
    assert "secret" not in (tmp_path / "folder" / "README.md").read_text()


def test_a_card_that_somebody_wrote_stays(folder):
    (folder / "README.md").write_text("mine")
    load(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
