from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

import graft.merging
from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from graft.errors import CheckpointError, MergeError
from graft.inference import Predictor, Sampling
from graft.merging import merge
from tiny import CHAT_TEMPLATE, SENTENCES, make_tokenizer, save_adapter, tiny_bert, tiny_llama

LORA = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)


def ids(text: str = SENTENCES[0]) -> torch.Tensor:
    return make_tokenizer()(text, return_tensors="pt")["input_ids"]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids()).logits


def adapted(adapter: Path, base: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval()


@pytest.fixture
def lora(base_folder, tmp_path) -> Path:
    return save_adapter(tmp_path / "adapter", base_folder, LORA, CHAT_TEMPLATE)


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, use_dora=True),
        IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
    ],
    ids=["lora", "dora", "ia3"],
)
def test_the_folder_is_a_plain_model_that_does_the_same(base_folder, tmp_path, config):
    adapter = save_adapter(tmp_path / "adapter", base_folder, config)
    model = adapted(adapter, base_folder)
    report = merge(adapter, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype is torch.float32
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    moved = (logits(base) - logits(model)).abs().max()
    assert moved > 0.01
    assert report.error < 1e-5 < 0.01 < report.effect
    assert report.rounding is None
    assert report.agreement == 1
    files = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert (report.bytes, report.dtype) == (sum(files), "float32")


def test_it_answers_in_a_pipeline_as_the_adapter_does(lora, tmp_path):
    merge(lora, tmp_path / "out")
    (answer,) = Predictor.load(lora).generate([SENTENCES[0]], Sampling(max_new_tokens=8))
    generator = pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    turns = [{"role": "user", "content": SENTENCES[0]}]
    (said,) = generator(turns, max_new_tokens=8, do_sample=False)
    assert said["generated_text"][-1]["content"] == answer.text


def test_the_template_and_the_end_of_a_turn_go_along(lora, tmp_path):
    merge(lora, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT_TEMPLATE
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert ends == Predictor.load(lora).stop_ids
    assert len(ends) == 2


def test_a_base_models_template_stays_where_texts_were_learned(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", LORA)
    merge(adapter, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT_TEMPLATE
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


def test_a_generation_config_with_faults_is_taken_along(base_folder, tmp_path):
    """Hubs are full of them, and transformers refuses to write one that was changed."""
    shutil.copytree(base_folder, tmp_path / "base")
    settings = {"temperature": 0.6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", LORA, CHAT_TEMPLATE)
    merge(adapter, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6
    assert written["eos_token_id"] == Predictor.load(adapter).stop_ids


def test_a_classifier_keeps_its_head_and_its_labels(tmp_path):
    tiny_bert().bert.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)
    labels = ["moon", "fish", "home"]
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", config, labels=labels)
    report = merge(adapter, tmp_path / "out")
    assert report.error < 1e-5
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(plain.config.id2label.values()) == labels
    (chances,) = Predictor.load(adapter).classify([SENTENCES[0]])
    found = dict(zip(labels, logits(plain)[0].softmax(-1).tolist(), strict=True))
    assert found == pytest.approx(chances, abs=1e-5)


def test_an_encoder_decoder(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=300, decoder_start_token_id=0, eos_token_id=2, **sizes)
    ).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", config)
    report = merge(adapter, tmp_path / "out")
    assert report.error < 1e-4 < 0.01 < report.effect
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    predictor = Predictor.load(adapter)
    given = {"input_ids": torch.tensor([predictor.prompt_ids(SENTENCES[0])])}
    (answer,) = predictor.generate([SENTENCES[0]], Sampling(max_new_tokens=6))
    said = plain.generate(**given, max_new_tokens=6)[0, 1:].tolist()
    assert said[: len(answer.ids)] == answer.ids


# --- rounding ---------------------------------------------------------------------------------


def expected_weights(adapter: Path, base: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The base's weights with the update added in fp32, and rounded once."""
    weights = load_file(base / "model.safetensors")
    update = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    out = {name: tensor.float() for name, tensor in weights.items()}
    for key, down in update.items():
        if key.endswith("lora_A.weight"):
            up = update[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            out[name] = out[name] + config["lora_alpha"] / config["r"] * (up @ down)
    return {name: tensor.to(dtype) for name, tensor in out.items()}


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32])
def test_a_bf16_base_is_merged_in_fp32_and_rounded_once(tmp_path, dtype):
    base = tmp_path / "base"
    tiny_llama().bfloat16().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", base, LORA)
    report = merge(adapter, tmp_path / "out", dtype=dtype)
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = expected_weights(adapter, base, dtype or torch.bfloat16)
    assert written.keys() == expected.keys()
    wanted = dtype or torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is wanted
    for name, tensor in written.items():
        ulps = 2 * torch.finfo(wanted).eps
        assert tensor.dtype is wanted
        torch.testing.assert_close(tensor, expected[name], atol=1e-7, rtol=ulps)
        # The last bit of a sum may fall either way where it is rounded, seldom.
        assert dtype is torch.float32 or (tensor == expected[name]).float().mean() > 0.99

    assert report.error < 1e-5  # of the merge alone
    if dtype is torch.float32:
        assert report.rounding is None
        return
    assert report.error < report.rounding < report.effect
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    rounded = (logits(plain) - logits(adapted(adapter, base))).abs().max()
    assert 0 < rounded < 10 * report.rounding  # on other tokens


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused_before_anything_is_loaded(base_folder, tmp_path, kind):
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapter = save_adapter(tmp_path / "adapter", base_folder, config)
    with pytest.raises(MergeError, match=rf"is {config.peft_type}.*graft chat.*lora, ia3"):
        merge(adapter, tmp_path / "out", base_model="./nowhere")
    assert not (tmp_path / "out").exists()


def test_new_biases_are_refused_where_the_class_has_no_place(base_folder, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", base_folder, BitFitConfig(task_type="CAUSAL_LM"))
    with pytest.raises(MergeError, match=r"a bias.*LlamaForCausalLM has no place.*graft chat"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_biases_that_are_there_are_merged(tmp_path):
    base = tmp_path / "base"
    tiny_llama(attention_bias=True, mlp_bias=True).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    model = PeftModel(
        AutoModelForCausalLM.from_pretrained(base), BitFitConfig(task_type="CAUSAL_LM")
    )
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    report = merge(tmp_path / "adapter", tmp_path / "out")
    assert report.error < 1e-4 < report.effect
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(model.eval()), atol=1e-4, rtol=1e-5)


def test_a_folder_in_use_is_refused(lora, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(MergeError, match="not empty"):
        merge(lora, tmp_path / "out")
    with pytest.raises(MergeError, match="is a file"):
        merge(lora, tmp_path / "out" / "thesis.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "out" / "thesis.txt").unlink()
    merge(lora, tmp_path / "out")  # an empty one is fine
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_merge_that_loses_the_adapter_is_found_out(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(PeftModel, "merge_and_unload", PeftModel.unload)
    with pytest.raises(MergeError, match="does not do what base model and adapter did"):
        merge(lora, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_back_otherwise_is_found_out(lora, tmp_path, monkeypatch, dtype):
    """As by a disk that is full, or a class that saves what it does not read."""
    load = graft.merging.load_model

    def load_less(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
        return model

    monkeypatch.setattr(graft.merging, "load_model", load_less)
    with pytest.raises(MergeError, match=r"layers\.1\.mlp\.up_proj\.weight was read back"):
        merge(lora, tmp_path / "out", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_no_adapter(base_folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge(base_folder, tmp_path / "out")
