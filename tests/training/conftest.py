"""A tiny language model and a tiny classifier with random weights, and rows for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from graft.config import PeftType, TaskType
from graft.data.collate import Collator
from graft.methods import METHODS
from graft.training.config import TrainConfig

SENTENCES = [f"{who} {does} {what}" for who in ("The cat", "A dog", "My owl") for does in
             ("sees", "wants", "has") for what in ("a fish", "the moon", "no home")]  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def needed_fields(kind: str) -> dict:
    """Settings without which the config of a method cannot be made."""
    prompts = METHODS[PeftType(kind.upper())].config_class.is_prompt_learning
    return {"num_virtual_tokens": 3} if prompts else {}


def tiny_llama(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def lm_rows(tokenizer) -> list[dict]:
    """Rows of different lengths, with a different number of learned tokens in each."""
    rows = []
    for number, sentence in enumerate(SENTENCES):
        ids = tokenizer(sentence)["input_ids"] + [2]
        masked = number % 4  # the first tokens are a prompt
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


@pytest.fixture
def lm_collator(tokenizer) -> Collator:
    return Collator(tokenizer, TaskType.CAUSAL_LM)


@pytest.fixture
def class_rows(tokenizer) -> list[dict]:
    return [
        {"input_ids": tokenizer(sentence)["input_ids"], "labels": int("moon" in sentence)}
        for sentence in SENTENCES
    ]


@pytest.fixture
def class_collator(tokenizer) -> Collator:
    return Collator(tokenizer, TaskType.SEQ_CLS)


@pytest.fixture
def settings() -> TrainConfig:
    return TrainConfig(
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_steps=6,
        logging_steps=1,
        seed=3,
        bf16=False,
    )


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The tiny language model as a folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": s[:8], "completion": s[8:]} for s in SENTENCES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def raw_run(base_folder, data_file, tmp_path) -> dict:
    """A run file's settings for the tiny language model."""
    return {
        "base_model": str(base_folder),
        "task_type": "CAUSAL_LM",
        "adapters": {"own": {"method": "lora", "r": 2, "target_modules": "all-linear"}},
        "data": {"train": str(data_file), "max_length": 32, "eval_fraction": 0.2},
        "train": {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 2,
            "save_steps": 2,
            "learning_rate": 1e-2,
        },
    }
