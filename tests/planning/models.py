"""Configs of small models, large enough that what kernels need for themselves does not show."""

from __future__ import annotations

from typing import Any

from transformers import (
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)

__all__ = ["bert", "gemma2", "gpt2", "llama", "qwen3", "qwen3_experts", "t5"]

_VOCABULARY = 3000


def llama(layers: int = 4, **settings: Any) -> LlamaConfig:
    return LlamaConfig(**_sizes(layers), num_key_value_heads=2, **settings)


def qwen3(layers: int = 4) -> Qwen3Config:
    return Qwen3Config(**_sizes(layers), num_key_value_heads=2, head_dim=24)


def qwen3_experts(layers: int = 4) -> Qwen3MoeConfig:
    settings = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    return Qwen3MoeConfig(**_sizes(layers), num_key_value_heads=2, head_dim=24, **settings)


def gemma2(layers: int = 6) -> Gemma2Config:
    settings = {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 16}
    return Gemma2Config(**_sizes(layers), **settings)


def gpt2(layers: int = 4) -> GPT2Config:
    return GPT2Config(
        vocab_size=_VOCABULARY, n_embd=96, n_layer=layers, n_head=4, bos_token_id=1, eos_token_id=2
    )


def bert(layers: int = 4) -> BertConfig:
    return BertConfig(**_sizes(layers))


def t5(layers: int = 4) -> T5Config:
    return T5Config(
        vocab_size=_VOCABULARY,
        d_model=96,
        d_kv=24,
        d_ff=192,
        num_layers=layers,
        num_heads=4,
        decoder_start_token_id=0,
    )


def _sizes(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": _VOCABULARY,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
