"""Tiny models with random weights, a tokenizer for them, and adapters of theirs on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from graft import PeftConfig, PeftModel
from graft.hub import LABELS_NAME, load_model

SENTENCES = [f"{who} {does} {what}" for who in ("The cat", "A dog", "My owl") for does in
             ("sees", "wants", "has") for what in ("a fish", "the moon", "no home")]  # fmt: skip

# Short, as the tiny models read 64 tokens only; an answer ends with the special token <end>.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.role[0] + ':' + message.content + '<end>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(dropout: float = 0.0, layers: int = 2, **settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    return LlamaForCausalLM(config)


def bert_config(**settings: Any) -> BertConfig:
    return BertConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **settings,
    )


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config(num_labels=2))


def save_adapter(
    folder: Path,
    base: Path,
    config: PeftConfig,
    chat_template: str | None = None,
    labels: list[str] | None = None,
) -> Path:
    """A new adapter as a run leaves it: with its tokenizer, and its labels, beside it."""
    assert config.task_type is not None
    model = PeftModel(load_model(str(base), config.task_type, labels), config)
    model.save_pretrained(folder)
    make_tokenizer(chat_template).save_pretrained(folder)
    if labels is not None:
        (folder / LABELS_NAME).write_text(json.dumps(labels))
    return folder
