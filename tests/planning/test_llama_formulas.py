"""A step of LoRA on a Llama, written down in closed form, and the trace of it: they are equal."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from graft import LoraConfig
from graft.config import TaskType
from graft.planning.setting import Row, Setting
from graft.planning.step import Trace, trace_step

ROWS = ((40, 39), (25, 11))  # tokens and labels
TOKENS = sum(tokens for tokens, _ in ROWS)
RANK = 4


def llama(layers: int, inner: int = 160) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def traced(config: LlamaConfig, dtype: torch.dtype, checkpointing: bool = False) -> Trace:
    adapter = LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK, target_modules="all-linear")
    return trace_step(
        Setting(
            config=config,
            task_type=TaskType.CAUSAL_LM,
            batches=(tuple(Row(*row) for row in ROWS),),
            adapters={"own": adapter},
            dtype=dtype,
            gradient_checkpointing=checkpointing,
        )
    )


def shapes(config: LlamaConfig) -> list[tuple[int, int]]:
    """In and out of each linear layer of a decoder layer: q, k, v, o, gate, up, down."""
    d, i = config.hidden_size, config.intermediate_size
    kv = d // config.num_attention_heads * config.num_key_value_heads
    return [(d, d), (d, kv), (d, kv), (d, d), (d, i), (d, i), (i, d)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_between_steps(dtype):
    config = llama(layers=3)
    d, layers, size = config.hidden_size, config.num_hidden_layers, dtype.itemsize
    linears = shapes(config)
    numbers = layers * (sum(i * o for i, o in linears) + 2 * d) + d + 2 * config.vocab_size * d
    frequencies = d // config.num_attention_heads // 2  # of rotary positions, with their original
    learned = layers * sum(RANK * (i + o) for i, o in linears)
    tensors = layers * len(linears) * 2

    found = traced(config, dtype)
    memory = found.memory
    assert found.parameters == numbers + learned
    assert found.trainable == learned
    assert memory.weights == size * numbers + 2 * 4 * frequencies
    assert memory.adapter == 4 * learned
    # AdamW's two averages, and a count of its steps for each tensor.
    assert memory.optimizer == 2 * 4 * learned + 4 * tensors
    assert max(moment.bytes["gradients"] for moment in memory.timeline) == 4 * learned


@pytest.mark.parametrize(("dtype", "inner"), [(torch.float32, 96), (torch.bfloat16, 160)])
def test_what_a_layer_keeps_for_the_backward_pass(dtype, inner):
    """Per token and layer, with s bytes a number, D the width, KV that of the keys, I the inner.

    Two norms keep their input and one number in fp32; each their output, which layers read. The
    attention keeps q, k, v and what it gives to o. The feed-forward keeps gate, up and what they
    make. Each of the seven linear layers keeps A x.
    """
    config = llama(layers=3, inner=inner)
    d, s = config.hidden_size, dtype.itemsize
    kv = d // config.num_attention_heads * config.num_key_value_heads
    norms = 2 * (s * d + 4 + s * d)
    attention = s * (2 * d + 2 * kv)
    feed_forward = s * 3 * inner
    updates = s * 7 * RANK

    def kept(layers: int) -> int:
        memory = traced(llama(layers, inner), dtype).memory
        return max(moment.bytes["activations"] for moment in memory.timeline)

    assert kept(4) - kept(3) == TOKENS * (norms + attention + feed_forward + updates)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_what_a_checkpointed_layer_keeps_is_its_input(dtype):
    def kept(layers: int) -> int:
        memory = traced(llama(layers), dtype, checkpointing=True).memory
        return max(moment.bytes["activations"] for moment in memory.timeline)

    assert kept(5) - kept(4) == TOKENS * dtype.itemsize * llama(1).hidden_size
