from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    XLNetConfig,
)

from graft.config import TaskType
from graft.errors import CheckpointError, ConfigError
from graft.hub import (
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    positions_of,
    resolve,
)
from tiny import make_tokenizer

WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
SIZES = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}


def save_tokenizer(folder: Path, **special: str) -> None:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A Llama without a pad token, like many on the hub."""
    folder = tmp_path_factory.mktemp("hub") / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SIZES)).save_pretrained(folder)
    save_tokenizer(folder, eos_token="</s>")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub cannot be reached, and nothing was downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_folder_stands_for_itself(llama, monkeypatch):
    assert resolve(str(llama)) == str(llama)
    monkeypatch.chdir(llama.parent)
    assert resolve("llama") == "llama"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", ["no folder ./nowhere"]),
        ("a/b/c", ["no folder a/b/c"]),
        ("gcs:org/name", ["hf:ORG/NAME", "ms:ORG/NAME"]),
        ("bad name!", ["neither a folder", "ORG/NAME"]),
        ("ms:name", ["ms:ORG/NAME"]),
        ("https://huggingface.co/org/name/tree/main", ["write hf:org/name"]),
    ],
)
def test_what_is_no_base_model(source, words):
    with pytest.raises(ConfigError) as error:
        resolve(source)
    for word in [*words, source.removeprefix("hf:")]:
        assert word in str(error.value)


@pytest.mark.parametrize("source", ["org/name", "hf:org/name", "gpt2"])
@pytest.mark.usefixtures("offline")
def test_a_hub_that_cannot_be_reached(source):
    with pytest.raises(
        ConfigError, match=r"no folder .* not in the cache .* HF_HUB_OFFLINE is set"
    ):
        resolve(source)


def test_a_misspelt_folder_with_its_neighbour(llama):
    with pytest.raises(ConfigError, match=rf"Did you mean {llama}"):
        resolve(f"{llama.parent}/lama")
    with pytest.raises(ConfigError, match="is a file"):
        resolve(str(llama / "config.json"))


def test_folders_that_hold_no_base_model(llama, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve(str(tmp_path))
    shutil.copy(llama / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no weights"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("this is no safetensors file")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        resolve(str(tmp_path))


def test_weights_that_were_cut_short(llama, tmp_path):
    """Said with both sizes, before any library sees the file."""
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for length in (len(whole) - 4, 100, 3):
        weights.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut short.*fetch it again") as error:
            load_model(str(tmp_path), TaskType.CAUSAL_LM)
        assert f"{length:,} bytes" in str(error.value)
    weights.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=f"its header says {len(whole):,}"):
        resolve(str(tmp_path))
    resolve(str(tmp_path), part="tokenizer")  # which needs no weights


def test_a_shard_that_is_missing(tmp_path):
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SIZES)).save_pretrained(
        tmp_path, max_shard_size="1KB"
    )
    resolve(str(tmp_path))
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shards[1].name} that its index names"):
        load_model(str(tmp_path), TaskType.CAUSAL_LM)


def test_an_adapter_is_no_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(CheckpointError, match=r"is an adapter.*org/base"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"config\.json, line 1 is not JSON"),
        ("[]", r"config\.json holds no JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": "lama"}', "did you mean llama"),
        ('{"model_type": "never heard of"}', "does not know: a newer one may"),
        ('{"model_type": "strange", "auto_map": {}}', "code of its own.*no class for .*'strange'"),
    ],
)
def test_a_broken_config(llama, tmp_path, content, said):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(content)
    for load in (load_config, load_skeleton, lambda s: load_model(s, TaskType.CAUSAL_LM)):
        with pytest.raises(CheckpointError, match=said):
            load(str(tmp_path))


def test_code_beside_a_model_that_transformers_knows_is_not_needed(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoModelForCausalLM": "strange.M"},', 1)
    )
    assert isinstance(load_model(str(tmp_path), TaskType.CAUSAL_LM), LlamaForCausalLM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_loads_the_weights_in_the_dtype_asked_for(llama, dtype):
    model = load_model(str(llama), TaskType.CAUSAL_LM, dtype=dtype)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype is (dtype or torch.float32)  # None: as saved
    torch.testing.assert_close(
        model.model.embed_tokens.weight.float(),
        LlamaForCausalLM.from_pretrained(llama).model.embed_tokens.weight,
        rtol=1e-2,
        atol=1e-3,
    )


def test_only_safe_files_are_read(llama, tmp_path):
    """A .bin is read where there is nothing else, but never anything that runs code."""
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(str(tmp_path), TaskType.CAUSAL_LM)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    torch.save({"lm_head.weight": Path("a pickled object")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(str(tmp_path), TaskType.CAUSAL_LM)


def test_a_classifier_knows_its_labels_and_its_padding(llama, tmp_path):
    model = load_model(str(llama), TaskType.SEQ_CLS, label_names=["no", "yes", "maybe"])
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert model.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert model.config.pad_token_id == WORDS["</s>"]  # the tokenizer has no pad token

    shutil.copytree(llama, tmp_path / "padded")
    save_tokenizer(tmp_path / "padded", eos_token="</s>", pad_token="<pad>")
    padded = load_model(str(tmp_path / "padded"), TaskType.SEQ_CLS, label_names=["no", "yes"])
    assert padded.config.pad_token_id == WORDS["<pad>"]


def test_a_decoder_classifies_by_its_last_token_in_a_batch(llama):
    model = load_model(str(llama), TaskType.SEQ_CLS, label_names=["no", "yes"]).eval()
    short, pad = [3, 4], model.config.pad_token_id
    ids = torch.tensor([[3, 4, 3, 4], [*short, pad, pad]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    together = model(input_ids=ids, attention_mask=mask).logits[1]
    alone = model(input_ids=torch.tensor([short])).logits[0]
    torch.testing.assert_close(together, alone)


def test_weights_that_are_missing(llama, tmp_path, caplog):
    shutil.copytree(llama, tmp_path / "headless")
    model = LlamaForCausalLM.from_pretrained(llama)
    model.model.save_pretrained(tmp_path / "headless")  # the decoder without its lm_head
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_model(str(tmp_path / "headless"), TaskType.CAUSAL_LM)
    assert not [r for r in caplog.records if r.name == "graft"]

    # A head that is to be learned is fine; a random part that stays frozen is told.
    BertForMaskedLM(BertConfig(num_hidden_layers=1, **SIZES)).save_pretrained(tmp_path / "mlm")
    save_tokenizer(tmp_path / "mlm", pad_token="<pad>")
    load_model(str(tmp_path / "mlm"), TaskType.SEQ_CLS, label_names=["no", "yes"])
    (record,) = [r for r in caplog.records if r.name == "graft"]
    assert "bert.pooler" in record.getMessage()
    assert "classifier" not in record.getMessage()


def test_a_model_that_the_task_has_no_form_for(llama):
    with pytest.raises(CheckpointError) as caught:
        load_model(str(llama), TaskType.SEQ_2_SEQ_LM)
    assert str(caught.value) == (
        f"{llama} is a llama, which transformers does not have for SEQ_2_SEQ_LM; it can be loaded "
        "for CAUSAL_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION."
    )


def test_code_that_comes_with_a_model_is_not_run(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(
        '{"model_type": "strange", "auto_map": {"AutoConfig": "strange.C",'
        ' "AutoModelForCausalLM": "strange.M"}}'
    )
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError, match="code of its own"):
        load_model(str(tmp_path), TaskType.CAUSAL_LM)
    assert not (tmp_path / "ran").exists()


def test_tokenizers(llama, tmp_path):
    assert load_tokenizer(str(llama)).convert_tokens_to_ids("b") == WORDS["b"]
    save_tokenizer(tmp_path, eos_token="</s>")
    assert load_tokenizer(str(tmp_path)).eos_token == "</s>"  # alone, to look at data with
    # Beside an adapter there is a tokenizer, but no base model.
    (tmp_path / "adapter_config.json").write_text("{}")
    assert load_tokenizer(str(tmp_path)).eos_token == "</s>"


def test_a_folder_without_a_tokenizer(tmp_path):
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SIZES)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_the_head_is_the_one_of_transformers(llama):
    ours = load_model(str(llama), TaskType.SEQ_CLS, label_names=["no", "yes"])
    theirs = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=2)
    assert type(ours) is type(theirs)
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}


def test_a_skeleton_is_the_model_without_its_weights(llama, tmp_path):
    """From config.json alone, and without memory."""
    shutil.copy(llama / "config.json", tmp_path)
    assert load_config(str(tmp_path)).hidden_size == SIZES["hidden_size"]
    for task, kind in [
        (None, LlamaForCausalLM),
        (TaskType.CAUSAL_LM, LlamaForCausalLM),
        (TaskType.SEQ_CLS, LlamaForSequenceClassification),
        (TaskType.FEATURE_EXTRACTION, LlamaModel),
    ]:
        skeleton = load_skeleton(str(tmp_path), task)
        assert type(skeleton) is kind
        assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    whole = load_model(str(llama), TaskType.CAUSAL_LM)
    shapes = [{n: (p.shape, p.dtype) for n, p in m.named_parameters()} for m in (
        whole, load_skeleton(str(tmp_path)))]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_what_no_skeleton_can_be_made_of(llama, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        load_skeleton("./nowhere")
    with pytest.raises(CheckpointError, match=r"llama, .* does not have for SEQ_2_SEQ_LM; it can"):
        load_skeleton(str(llama), TaskType.SEQ_2_SEQ_LM)


def test_a_head_for_other_labels_is_made_anew(llama, tmp_path):
    load_model(str(llama), TaskType.SEQ_CLS, label_names=["a", "b"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, eos_token="</s>")
    old = load_model(str(tmp_path), TaskType.SEQ_CLS, label_names=["a", "b"])
    again = load_model(str(tmp_path), TaskType.SEQ_CLS, label_names=["a", "b"])
    assert torch.equal(again.score.weight, old.score.weight)  # the same labels: the head is kept
    new = load_model(str(tmp_path), TaskType.SEQ_CLS, label_names=["x", "y", "z"])
    assert new.score.weight.shape[0] == 3
    assert torch.equal(new.model.embed_tokens.weight, old.model.embed_tokens.weight)


def test_a_body_of_another_size_is_broken(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"intermediate_size": 8', '"intermediate_size": 16')
    )
    with pytest.raises(CheckpointError, match=r"shape \(8, 8\)|shape \(16, 8\)|size mismatch"):
        load_model(str(tmp_path), TaskType.SEQ_CLS, label_names=["a", "b"])


def test_positions_are_the_fewest_that_anyone_names():
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 100
    for own, positions in ((64, 64), (200, 100)):
        config = LlamaConfig(max_position_embeddings=own)
        assert positions_of(config, tokenizer) == positions
    assert XLNetConfig().max_position_embeddings < 0  # it has no end
    assert positions_of(XLNetConfig(), tokenizer) == 100
    assert positions_of(T5Config(), tokenizer) == 100  # it names none


def test_what_no_file_holds_is_the_same_at_each_load(tmp_path, caplog):
    """A pooler that stays as it is is part of what an adapter learned on."""
    sizes = {**SIZES, "num_hidden_layers": 1, "max_position_embeddings": 8}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    poolers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = load_model(str(tmp_path), TaskType.SEQ_CLS)
        poolers.append(model.bert.pooler.dense.weight)
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(3))  # the caller's numbers are as they were
    assert torch.equal(*poolers)
    assert "stays random" in caplog.text
