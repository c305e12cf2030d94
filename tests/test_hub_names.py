"""Base models, tokenizers and adapters by the names that they have on a hub."""

from __future__ import annotations

import pytest
import torch

from graft import LoraConfig, PeftModel, get_peft_model
from graft.config import PeftConfig, TaskType
from graft.download import adapter_folder
from graft.errors import CheckpointError
from graft.hub import load_config, load_model, load_skeleton, load_tokenizer
from tiny import save_adapter

HUBS = [("hugging_face", "hf"), ("modelscope", "ms")]


@pytest.fixture(params=HUBS, ids=[prefix for _, prefix in HUBS])
def hub(request, base_folder):
    """A hub that has the tiny model and says how it is called there."""
    fixture, prefix = request.param
    server = request.getfixturevalue(fixture)
    server.add("org/tiny", {path.name: path.read_bytes() for path in base_folder.iterdir()})
    return server, f"{prefix}:org/tiny"


def served(server) -> set[str]:
    return {path for path, count in server.served.items() if count}


def test_no_more_is_fetched_than_is_needed(hub, base_folder):
    server, source = hub
    assert load_config(source).hidden_size == load_config(str(base_folder)).hidden_size
    assert load_skeleton(source).config.model_type == "llama"
    assert served(server) == {"config.json"}
    assert len(load_tokenizer(source)) == len(load_tokenizer(str(base_folder)))
    assert "model.safetensors" not in served(server)
    server.served.clear()
    load_model(source, TaskType.CAUSAL_LM)
    assert served(server) == {"model.safetensors"}


def test_a_model_is_the_one_of_the_folder(hub, base_folder):
    _, source = hub
    model = load_model(source, TaskType.CAUSAL_LM)
    ids = torch.arange(5)[None]
    theirs = load_model(str(base_folder), TaskType.CAUSAL_LM)
    assert torch.equal(model(ids).logits, theirs(ids).logits)


def test_an_adapter_names_its_base_as_the_hub_does(hub, tmp_path):
    """Not as a folder of this machine's cache."""
    _, source = hub
    model = get_peft_model(load_model(source, TaskType.CAUSAL_LM), LoraConfig())
    model.save_pretrained(tmp_path)
    base = PeftConfig.from_pretrained(tmp_path).base_model_name_or_path
    assert base == source.removeprefix("hf:")
    again = PeftModel.from_pretrained(load_model(base, TaskType.CAUSAL_LM), tmp_path)
    assert again.peft_config.keys() == model.peft_config.keys()


def test_an_adapter_on_a_hub(hub, base_folder, tmp_path):
    server, source = hub
    save_adapter(tmp_path / "here", base_folder, LoraConfig(task_type="CAUSAL_LM", r=3))
    files = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    server.add("org/adapter", {**files, "optimizer.pt": b"pickled"})
    server.add("org/several", {f"{n}/{path}": c for n in "ab" for path, c in files.items()})
    config = PeftConfig.from_pretrained(source.replace("tiny", "adapter"))
    assert isinstance(config, LoraConfig)
    assert config.r == 3
    assert "optimizer.pt" not in served(server)
    several = source.replace("tiny", "several")
    assert PeftConfig.from_pretrained(several, subfolder="b").peft_type == config.peft_type
    with pytest.raises(CheckpointError, match=r"There are adapters in it: a, b\."):
        adapter_folder(several)
    with pytest.raises(CheckpointError, match="org/adapter is an adapter, not a base model"):
        load_model(source.replace("tiny", "adapter"), TaskType.CAUSAL_LM)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        adapter_folder(source)


def test_weights_that_are_no_safetensors_are_asked_for_first(hub, base_folder, tmp_path):
    server, source = hub
    model = load_model(str(base_folder), TaskType.CAUSAL_LM)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    files = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    del files["model.safetensors"]
    server.add("org/old", files)
    old = source.replace("tiny", "old")
    with pytest.raises(CheckpointError, match=r"has no safetensors.*--include 'pytorch_model\*'"):
        load_model(old, TaskType.CAUSAL_LM)
    from graft.download import hub_address, make_plan, matching

    make_plan(hub_address(old), lambda listing: matching(listing, ["*"])).fetch()
    loaded = load_model(old, TaskType.CAUSAL_LM)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
