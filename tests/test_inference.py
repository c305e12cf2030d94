from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.data.template import IGNORED
from graft.errors import CheckpointError, ConfigError, DataError, GraftError
from graft.inference import Conversation, Predictor, Sampling
from graft.inference.streaming import TextPieces, decoded
from graft.training import precision
from graft.training.precision import Hardware
from graft.training.run import train
from graft.training.runfile import parse_run_config
from tiny import CHAT_TEMPLATE, SENTENCES, make_tokenizer, save_adapter, tiny_llama

PROMPTS = ["The cat", "A dog wants a", "My"]
CONFIGS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5),
    "ia3": IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
    "bitfit": BitFitConfig(task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def greedy(model: PeftModel, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """The likeliest tokens after `ids`, each from a forward of everything before it."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < count:
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token in ends:
                break
            new.append(token)
    return new


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONFIGS)
def test_answers_are_those_of_base_and_adapter(base_folder, tmp_path, method):
    """One by one and several at once, cached and not, with every kind of adapter."""
    save_adapter(tmp_path, base_folder, CONFIGS[method])
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    tokenizer = make_tokenizer()
    wanted = [greedy(model, tokenizer(prompt)["input_ids"], 12, [2]) for prompt in PROMPTS]

    predictor = Predictor.load(tmp_path)
    sampling = Sampling(max_new_tokens=12)
    for size in (1, 2, 8):
        answers = predictor.generate(PROMPTS, sampling, batch_size=size)
        assert [answer.ids for answer in answers] == wanted
    assert [answer.text for answer in answers] == [tokenizer.decode(ids) for ids in wanted]
    if method == "lora":  # the adapter does matter
        assert wanted != [greedy(base, tokenizer(p)["input_ids"], 12, [2]) for p in PROMPTS]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gains", [True, False])
def test_half_precision_on_a_processor_that_gains_from_it(
    base_folder, tmp_path, monkeypatch, stored, gains
):
    base = shutil.copytree(base_folder, tmp_path / "base")
    tiny_llama().to(stored).save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", base, CONFIGS["lora"])
    monkeypatch.setattr(precision, "this_hardware", lambda kind: Hardware(kind, bf16=gains))
    monkeypatch.setattr(precision, "_NARROW", 0)
    model = Predictor.load(adapter, device=torch.device("cpu")).model
    expected = torch.bfloat16 if gains and stored is torch.bfloat16 else torch.float32
    assert model.base_model.dtype == expected


def test_an_answer_ends_where_it_was_trained_to(lora):
    predictor = Predictor.load(lora)
    (whole,) = predictor.generate(["The cat"], Sampling(max_new_tokens=10))
    assert len(whole.ids) == 10
    assert not whole.finished
    end = whole.ids[4]
    predictor.stop_ids = [end]
    (cut,) = predictor.generate(["The cat"], Sampling(max_new_tokens=10))
    assert cut.ids == whole.ids[: whole.ids.index(end)]
    assert cut.finished


def test_the_end_tokens_are_the_base_models_and_the_templates(lora, chatty):
    assert Predictor.load(lora).stop_ids == [2]
    end_of_turn = make_tokenizer().convert_tokens_to_ids("<end>")
    assert Predictor.load(chatty).stop_ids == [2, end_of_turn]


def test_drawing_is_decided_by_the_seed_and_narrowed_by_top_p(lora):
    predictor = Predictor.load(lora)

    def drawn(seed: int, **settings: float) -> list[int]:
        torch.manual_seed(seed)
        sampling = Sampling(max_new_tokens=12, **settings)
        return predictor.generate(["The cat"], sampling)[0].ids

    assert drawn(0, temperature=5.0) == drawn(0, temperature=5.0) != drawn(1, temperature=5.0)
    assert drawn(0, temperature=5.0, top_p=1e-9) == drawn(1)  # the likeliest token alone is left
    assert drawn(0, temperature=1e-4) == drawn(1)


def test_a_base_models_own_way_of_choosing_is_left_out(base_folder, lora, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    config = GenerationConfig(
        do_sample=True,
        temperature=9.0,
        repetition_penalty=5.0,
        num_beams=3,
        min_length=30,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.save_pretrained(tmp_path / "base")
    plain = Predictor.load(lora).generate(PROMPTS, Sampling(max_new_tokens=8))
    other = Predictor.load(lora, str(tmp_path / "base"))
    assert other.generate(PROMPTS, Sampling(max_new_tokens=8)) == plain


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p"),
        ({"top_p": 0.9}, "needs a temperature"),
    ],
)
def test_settings_that_cannot_work(settings, said):
    with pytest.raises(ConfigError, match=said):
        Sampling(**settings)


@pytest.mark.parametrize(("method", "virtual"), [("lora", 0), ("prompt", 3), ("prefix", 3)])
def test_an_answer_ends_with_the_base_models_positions(base_folder, tmp_path, method, virtual):
    save_adapter(tmp_path, base_folder, CONFIGS[method])
    predictor = Predictor.load(tmp_path)
    predictor.stop_ids = []
    predictor.model.base_model.generation_config.eos_token_id = None
    prompt = "fish" * 30
    length = len(predictor.prompt_ids(prompt))
    (answer,) = predictor.generate([prompt])
    assert length + virtual + len(answer.ids) == 64
    with pytest.raises(DataError, match=f"reads at most {64 - virtual}"):
        predictor.generate(["fish " * 64])


def test_a_prompt_without_tokens(lora):
    with pytest.raises(DataError, match="no tokens"):
        Predictor.load(lora).generate([""])


def test_an_encoder_decoder_answers(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    base = T5ForConditionalGeneration(
        T5Config(vocab_size=300, decoder_start_token_id=0, eos_token_id=2, **sizes)
    )
    base.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    save_adapter(tmp_path / "adapter", tmp_path / "base", config)
    predictor = Predictor.load(tmp_path / "adapter")
    predictor.stop_ids = []
    answers = predictor.generate(PROMPTS, Sampling(max_new_tokens=6))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        said = [0]
        with torch.no_grad():
            for _ in range(6):
                given = {"input_ids": torch.tensor([predictor.prompt_ids(prompt)])}
                logits = predictor.model(**given, decoder_input_ids=torch.tensor([said])).logits
                said.append(int(logits[0, -1].argmax()))
        assert answer.ids == said[1:]


# --- prompts as in training -------------------------------------------------------------------


def rows_in(folder: Path, name: str, prompt: str, answer: str) -> str:
    rows = [{prompt: sentence[:8], answer: sentence[8:]} for sentence in SENTENCES]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.mark.parametrize("has_template", [False, True])
@pytest.mark.parametrize("columns", [("instruction", "output"), ("prompt", "completion")])
def test_prompts_are_those_of_training(base_folder, tmp_path, has_template, columns):
    """What the run leaves behind is enough: the data's format and the base model's template."""
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    make_tokenizer(CHAT_TEMPLATE if has_template else None).save_pretrained(base)
    data = rows_in(tmp_path, "rows.jsonl", *columns)
    run = {
        "base_model": str(base),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora"}},
        "data": {"train": data, "max_length": 60},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 1},
    }
    train(parse_run_config(run))
    predictor = Predictor.load(tmp_path / "out")
    assert (predictor.chat_template is None) == (columns[0] == "prompt" and not has_template)

    tokenizer = make_tokenizer(CHAT_TEMPLATE if has_template else None)
    config = DataConfig(train=data, max_length=60)
    learned = prepare_data(config, tokenizer, TaskType.CAUSAL_LM, seed=0).train
    for row, sentence in zip(learned, SENTENCES, strict=True):
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
        assert predictor.prompt_ids(sentence[:8]) == row["input_ids"][:start]
        assert row["labels"][-1] in predictor.stop_ids


def test_tools_are_part_of_the_prompt(base_folder, tmp_path):
    template = "{{ tools | tojson if tools else '' }}" + CHAT_TEMPLATE
    save_adapter(tmp_path, base_folder, CONFIGS["lora"], template)
    predictor = Predictor.load(tmp_path)
    tools = [{"type": "function", "function": {"name": "f"}}]
    ids = predictor.prompt_ids("The cat", tools)
    assert predictor.tokenizer.decode(ids) == f"{json.dumps(tools)}u:The cat<end>a:"
    sampling = Sampling(max_new_tokens=3)
    (answer,) = predictor.generate(["The cat"], sampling, tools=tools)
    assert answer.ids == greedy(predictor.model, ids, 3, predictor.stop_ids)


def test_without_a_tokenizer_beside_it_the_base_models_is_used(lora, base_folder, tmp_path):
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    predictor = Predictor.load(tmp_path)
    assert predictor.tokenizer.name_or_path == str(base_folder)
    assert predictor.generate(PROMPTS) == Predictor.load(lora).generate(PROMPTS)


# --- pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_the_pieces_are_the_answer(base_folder, tmp_path, method):
    save_adapter(tmp_path, base_folder, CONFIGS[method])
    predictor = Predictor.load(tmp_path)
    pieces: list[str] = []
    answer = predictor.stream("The cat", pieces.append, Sampling(max_new_tokens=12))
    assert answer == predictor.generate(["The cat"], Sampling(max_new_tokens=12))[0]
    assert "".join(pieces) == answer.text


def test_a_character_is_told_whole():
    """One of several tokens, in text with line breaks and spaces; the end token is no text."""
    tokenizer = make_tokenizer()
    text = "The cat\n   a dog 你好\n  é!"
    ids = tokenizer(text)["input_ids"]
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)
    pieces: list[str] = []
    streamer = TextPieces(tokenizer, [2], pieces.append)
    streamer.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in [*ids, 2]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == text == decoded(tokenizer, ids)
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_are_told_in_the_end():
    tokenizer = make_tokenizer()
    ids = tokenizer("a你")["input_ids"][:-1]
    pieces: list[str] = []
    streamer = TextPieces(tokenizer, [], pieces.append)
    for value in ([9], *([token] for token in ids)):
        streamer.put(torch.tensor(value))
    assert "".join(pieces) == "a"
    streamer.end()
    assert "".join(pieces) == tokenizer.decode(ids)


# --- what cannot be used ----------------------------------------------------------------------


def test_an_adapter_of_another_task(lora, classifier):
    with pytest.raises(ConfigError, match="SEQ_CLS generates no text"):
        Predictor.load(classifier).generate(["a"])
    with pytest.raises(ConfigError, match="SEQ_CLS cannot chat"):
        Conversation(Predictor.load(classifier))
    with pytest.raises(ConfigError, match="CAUSAL_LM names no classes"):
        Predictor.load(lora).classify(["a"])
    with pytest.raises(ConfigError, match="CAUSAL_LM tags no words"):
        Predictor.load(lora).tag([["a"]])
    with pytest.raises(ConfigError, match="CAUSAL_LM finds no answers"):
        Predictor.load(lora).extract([("a", "b")])


def edited(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_base_model_that_has_moved(lora, base_folder, tmp_path):
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    edited(tmp_path, base_model_name_or_path="./moved")
    with pytest.raises(ConfigError, match=r"no folder \./moved.*--base-model"):
        Predictor.load(tmp_path)
    found = Predictor.load(tmp_path, str(base_folder)).generate(PROMPTS)
    assert found == Predictor.load(lora).generate(PROMPTS)
    with pytest.raises(ConfigError, match=r"no folder \./gone") as error:
        Predictor.load(tmp_path, "./gone")
    assert "--base-model" not in str(error.value)


def test_an_adapter_for_another_base_model(lora, bert_folder, tmp_path):
    tiny_llama(head_dim=8).save_pretrained(tmp_path / "wide")
    make_tokenizer().save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="another base model"):
        Predictor.load(lora, str(tmp_path / "wide"))
    with pytest.raises(CheckpointError, match=r"does not fit .*'q_proj' matches no"):
        Predictor.load(save_named_targets(lora, tmp_path / "named"), str(gpt2_folder(tmp_path)))


def save_named_targets(lora: Path, folder: Path) -> Path:
    shutil.copytree(lora, folder)
    edited(folder, target_modules=["q_proj", "v_proj"])
    return folder


def gpt2_folder(tmp_path: Path) -> Path:
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_folder_that_is_no_adapter(base_folder, tmp_path):
    with pytest.raises(CheckpointError, match="no adapter folder"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        Predictor.load(base_folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(GraftError, match="peft_type"):
        Predictor.load(tmp_path)
