"""What headers of files say. The files are written by transformers, then broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from graft import LoraConfig
from graft.inspection import Inspection, Node, StoredWeights, inspect
from tiny import tiny_llama

Change = Callable[[dict[str, Tensor], dict], None]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def saved(folder: Path, model: PreTrainedModel, change: Change | None = None) -> Path:
    """`model` in `folder`, its tensors and config changed."""
    model.save_pretrained(folder)
    if change is not None:
        weights, config = folder / "model.safetensors", folder / "config.json"
        tensors, settings = load_file(weights), json.loads(config.read_text())
        change(tensors, settings)
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(settings))
    return folder


def stored(found: Inspection) -> StoredWeights:
    assert found.stored is not None
    return found.stored


def dtypes(node: Node) -> set[str]:
    return {weight.dtype for weight in node.weights}.union(*map(dtypes, node.children))


# --- files that fit -------------------------------------------------------------------------------


def test_files_as_they_were_written(tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    found = inspect(saved(tmp_path, model))
    tensors = load_file(tmp_path / "model.safetensors")
    assert stored(found).files == 1
    assert stored(found).bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert found.bytes == stored(found).bytes
    assert stored(found).dtypes == dict.fromkeys(dict(model.named_parameters()), "bfloat16")
    assert stored(found).missing == stored(found).unexpected == stored(found).misfits == ()
    assert stored(found).quantization is None
    assert found.warnings == ()
    assert dtypes(found.tree) == {"bfloat16"}


def test_each_weight_has_the_dtype_of_the_files(tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    found = inspect(saved(tmp_path, model))
    expected = {n: str(p.dtype).removeprefix("torch.") for n, p in model.named_parameters()}
    assert set(expected.values()) == {"bfloat16", "float32"}
    assert stored(found).dtypes == expected
    assert found.bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.warnings == ()


def test_several_files(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="10KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    found = stored(inspect(tmp_path))
    assert found.files == len(files)
    assert found.missing == found.unexpected == ()


def test_what_is_tied_is_in_the_files_once(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    found = inspect(saved(tmp_path, model))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert found.warnings == ()
    assert stored(found).dtypes["lm_head.weight"] == "float32"
    assert found.bytes == stored(found).bytes


def test_names_in_files_may_be_older_than_the_model(tmp_path):
    """Mixtral's experts are tensors of their own in files, and one parameter in the model."""
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    found = inspect(saved(tmp_path, MixtralForCausalLM(config).to(torch.bfloat16)))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in names
    assert "model.layers.1.mlp.experts.gate_up_proj" in stored(found).dtypes.keys() - names
    assert set(stored(found).dtypes.values()) == {"bfloat16"}
    assert found.warnings == ()


def test_no_tensor_is_loaded(tmp_path):
    """The numbers themselves may be anything: only the length counts."""
    saved(tmp_path, tiny_llama())
    before = inspect(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    assert inspect(tmp_path) == before


# --- files that do not fit ------------------------------------------------------------------------


def test_tensors_that_are_missing_unexpected_or_of_another_shape(tmp_path):
    def change(tensors: dict[str, Tensor], config: dict) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["extra.weight"] = torch.zeros(2)
        tensors[Q_PROJ] = torch.zeros(8, 16)

    found = inspect(saved(tmp_path, tiny_llama(), change))
    assert stored(found).missing == ("model.layers.1.mlp.up_proj.weight",)
    assert stored(found).unexpected == ("extra.weight",)
    (misfit,) = stored(found).misfits
    assert (misfit.name, misfit.stored, misfit.expected) == (Q_PROJ, (8, 16), (16, 16))
    assert found.warnings == (
        f"{Q_PROJ} is 8 x 16 in the files, the config says 16 x 16.",
        "The config's model has what the files lack: model.layers.1.mlp.up_proj.weight.",
        "In the files, but not in the config's model: extra.weight.",
    )


def test_a_config_of_another_depth(tmp_path):
    def change(tensors: dict[str, Tensor], config: dict) -> None:
        config["num_hidden_layers"] = 4

    found = inspect(saved(tmp_path, tiny_llama(), change))
    per_layer = [n for n, _ in tiny_llama().named_parameters() if n.startswith("model.layers.0.")]
    assert len(stored(found).missing) == 2 * len(per_layer)
    (warning,) = found.warnings
    assert "model.layers.{2-3}.self_attn.q_proj.weight" in warning
    assert warning.endswith(f" and {len(per_layer) - 5} more.")


def test_many_misfits_are_not_all_told(tmp_path):
    def change(tensors: dict[str, Tensor], config: dict) -> None:
        config["intermediate_size"] = 32

    found = inspect(saved(tmp_path, tiny_llama(), change))
    assert len(stored(found).misfits) == 2 * 3  # layers x projections
    assert found.warnings[3:] == ("3 more tensors have another shape in the files.",)


def test_a_new_head_is_not_in_the_files(tmp_path):
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    found = inspect(saved(tmp_path, BertModel(config)), LoraConfig(), "SEQ_CLS")
    assert stored(found).missing == ("classifier.weight", "classifier.bias")
    assert found.warnings == (
        "Not in the files, so it starts at random: classifier.weight, classifier.bias.",
    )


def test_a_dtype_that_the_config_does_not_say(tmp_path):
    def change(tensors: dict[str, Tensor], config: dict) -> None:
        config["dtype"] = "bfloat16"

    found = inspect(saved(tmp_path, tiny_llama(), change))
    assert found.warnings == ("The files hold float32; config.json says bfloat16.",)


# --- quantised ------------------------------------------------------------------------------------


def _gptq(tensors: dict[str, Tensor], config: dict) -> None:
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        rows, columns = tensors.pop(name).shape
        layer = name.removesuffix("weight")
        tensors[f"{layer}qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        tensors[f"{layer}scales"] = torch.zeros(1, rows, dtype=torch.float16)
        tensors[f"{layer}g_idx"] = torch.zeros(columns, dtype=torch.int32)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16}


def _bitsandbytes(tensors: dict[str, Tensor], config: dict) -> None:
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.zeros(3)
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def _fp8(tensors: dict[str, Tensor], config: dict) -> None:
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    config["quantization_config"] = {"quant_method": "fp8"}


@pytest.mark.parametrize(
    ("change", "called", "codes"),
    [
        (_gptq, "gptq 4-bit", "int32"),
        (_bitsandbytes, "bitsandbytes 4-bit", "uint8"),
        (_fp8, "fp8 8-bit", "float8_e4m3fn"),
    ],
)
def test_quantised_files(tmp_path, change, called, codes):
    """Codes and scales belong to their layer; shapes and parameters are those of the model."""
    found = inspect(saved(tmp_path, tiny_llama(), change), LoraConfig())
    assert stored(found).quantization == called
    assert found.warnings == ()
    expected = {
        name: codes if name.endswith("_proj.weight") else "float32"
        for name, _ in tiny_llama().named_parameters()
    }
    assert stored(found).dtypes == expected
    assert found.parameters == sum(p.numel() for p in tiny_llama().parameters())
    tensors = load_file(tmp_path / "model.safetensors").values()
    assert found.bytes == sum(t.numel() * t.element_size() for t in tensors)
    alone = inspect(tiny_llama(), LoraConfig()).adapter
    assert alone is not None
    assert found.adapter == alone


def test_what_a_quantised_folder_lacks_is_still_seen(tmp_path):
    def change(tensors: dict[str, Tensor], config: dict) -> None:
        _gptq(tensors, config)
        for name in [n for n in tensors if n.startswith("model.layers.1.mlp.up_proj")]:
            del tensors[name]
        tensors["stray.qweight"] = torch.zeros(2, 2, dtype=torch.int32)

    found = stored(inspect(saved(tmp_path, tiny_llama(), change)))
    assert found.missing == ("model.layers.1.mlp.up_proj.weight",)
    assert found.unexpected == ("stray.qweight",)


# --- files that cannot be read: the config alone is still shown -----------------------------------


def test_a_file_that_is_cut_short(tmp_path):
    saved(tmp_path, tiny_llama())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    found = inspect(tmp_path)
    assert found.stored is None
    (warning,) = found.warnings
    assert "cut short" in warning
    assert found.parameters == sum(p.numel() for p in tiny_llama().parameters())


def test_a_dtype_that_nothing_knows(tmp_path):
    saved(tmp_path, tiny_llama())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"X32"'))
    (warning,) = inspect(tmp_path).warnings
    assert warning.endswith("model.safetensors has tensors of an unknown dtype: X32.")


def test_a_file_larger_than_memory(tmp_path):
    """4 TiB, all of it holes: a header is enough."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=2**19, num_hidden_layers=1, num_attention_heads=1
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape)}
        header[name]["data_offsets"] = [end, end + size]
        end += size
    assert end > 4 * 2**40
    raw = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        try:
            file.truncate(8 + len(raw) + end)
        except OSError:
            pytest.skip("this file system has no such files")
    found = inspect(tmp_path, LoraConfig())
    assert found.warnings == ()
    assert stored(found).bytes == end


def test_a_pointer_of_git_lfs(tmp_path):
    saved(tmp_path, tiny_llama())
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (warning,) = inspect(tmp_path).warnings
    assert "git lfs pull" in warning


def test_files_that_the_index_names_and_that_are_not_there(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="10KB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    count = len(list(tmp_path.glob("*.safetensors")))
    first.unlink()
    last.unlink()
    (warning,) = inspect(tmp_path).warnings
    assert warning.startswith(
        f"2 of the {count} files of the weights are not there, such as {first.name}"
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_broken(tmp_path, text):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    (warning,) = inspect(tmp_path).warnings
    assert "model.safetensors.index.json is broken" in warning


def test_without_safetensors_there_is_the_config_alone(base_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((base_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"no header to read")
    found = inspect(tmp_path)
    assert found.stored is None
    assert found.warnings == ()
