"""The bundled base model is small, whole, as its recipe says, and unable to do the task."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from graft.demo import demo_model_path, heldout_rows
from graft.demo.corpus import pretraining_text
from graft.demo.pretrain import Recipe, corpus_loss, pretrain

MIB = 2**20


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((demo_model_path() / "RECIPE.json").read_text())


def test_the_assets_are_small(model):
    size = sum(file.stat().st_size for file in demo_model_path().iterdir())
    assert size <= 8 * MIB
    assert 1_000_000 <= model.num_parameters() <= 4_000_000


def test_the_model_is_a_plain_llama_in_float32_with_biases(model):
    assert type(model) is LlamaForCausalLM
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    linears = [m for n, m in model.named_modules() if "proj" in n]
    assert all(linear.bias is not None for linear in linears)
    default = AutoModelForCausalLM.from_pretrained(demo_model_path())
    assert {p.dtype for p in default.parameters()} == {torch.float32}


def test_the_record_is_complete(model, record):
    assert record["recipe"] == asdict(Recipe())
    assert record["parameters"] == model.num_parameters()
    results = {"tokens_seen", "final_loss", "heldout_loss", "seconds", "torch_version"}
    assert set(record) == {"recipe", "parameters"} | results
    assert all(record[key] for key in results)


def test_fresh_text_has_about_the_recorded_loss(model, record):
    tokenizer = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    fresh = pretraining_text(seed=1234, documents=256)
    # 256 documents sample the loss with a standard error below one percent.
    assert corpus_loss(model, tokenizer, fresh) == pytest.approx(record["heldout_loss"], rel=0.04)


def test_every_word_of_the_task_is_one_token():
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for row in heldout_rows():
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
        # prompt and completion may be tokenized apart
        apart = [tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in row]
        assert ids[1:] == apart[0] + apart[1]
        assert len(apart[1]) == 6 * 3 + 5  # label, sign and value of each field; five separators


def test_the_base_model_cannot_do_the_task(model):
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path(), padding_side="left")
    rows = heldout_rows()[:30]
    inputs = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=40)[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    # To the base's advantage: only the first line counts, although it should stop there by itself.
    right = sum(
        text.split("\n")[0] == row["completion"] for text, row in zip(texts, rows, strict=True)
    )
    assert right / len(rows) < 0.2


def test_pretraining_again_gives_the_same_model(tmp_path):
    recipe = Recipe(steps=3, documents_per_step=4, hidden_size=16, intermediate_size=16)
    records = [pretrain(tmp_path / name, recipe) for name in ("first", "second")]
    assert records[0]["final_loss"] == records[1]["final_loss"]
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert {t.dtype for t in tensors[0].values()} == {torch.float16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
