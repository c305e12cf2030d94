"""What the benchmarks of speed run on: shapes of known models, methods, and rows of ids.

Base models have random weights. Rows have the lengths of alpaca_en_demo (LLaMA-Factory), or come
from a file.
"""

from __future__ import annotations

import random
from typing import Any

__all__ = ["LENGTHS", "METHODS", "SHAPES", "adapter_config", "make_model", "make_rows", "read_rows"]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": (
        "LlamaConfig",
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "tie_word_embeddings": True, "max_position_embeddings": 8192, "rope_theta": 1e5,
        },
    ),
    "qwen3": (
        "Qwen3Config",
        {
            "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40960,
        },
    ),
    "gpt2": ("GPT2Config", {}),
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 8, "target_modules": "all-linear"}),
    "lora-qv": ("LoraConfig", {"r": 8}),
    "lora-top": ("LoraConfig", {"r": 8}),  # of the upper third of the layers
    "ia3": ("IA3Config", {}),
    "bitfit": ("BitFitConfig", {}),
    "prompt_tuning": ("PromptTuningConfig", {"num_virtual_tokens": 20}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 20}),
    "prefix_tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 20}),
}
LINEAR = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
TARGETS = {  # PEFT has no table entry for some shapes
    ("smollm2", "lora-qv"): {"target_modules": ["q_proj", "v_proj"]},
    ("qwen3", "lora-qv"): {"target_modules": ["q_proj", "v_proj"]},
    ("gpt2", "lora-qv"): {"target_modules": ["c_attn"]},
    **{
        (shape, "ia3"): {
            "target_modules": ["k_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
        for shape in ("smollm2", "qwen3")
    },
    ("smollm2", "lora-top"): {"target_modules": LINEAR, "layers_to_transform": list(range(20, 30))},
    ("qwen3", "lora-top"): {"target_modules": LINEAR, "layers_to_transform": list(range(19, 28))},
    ("gpt2", "lora-top"): {
        "target_modules": ["c_attn", "c_proj", "c_fc"],
        "layers_to_transform": list(range(8, 12)),
    },
    ("gpt2", "ia3"): {
        "target_modules": ["c_attn", "mlp.c_proj"],
        "feedforward_modules": ["mlp.c_proj"],
    },
}
# Tokens of a row: the quantiles 0, 5 %, ..., 100 % of alpaca_en_demo under SmolLM2's tokenizer.
LENGTHS = [
    *(28, 38, 43, 48, 54, 62, 74, 92, 110, 130, 151),
    *(174, 202, 231, 264, 299, 330, 362, 405, 461, 705),
]


def make_rows(
    count: int, vocabulary: int, equal: bool = False, seed: int = 0
) -> list[dict[str, list[int]]]:
    """Rows of random ids, of which the last 85 % are learned."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        place = rng.random() * (len(LENGTHS) - 1)
        low = int(place)
        length = round(LENGTHS[low] + (place - low) * (LENGTHS[low + 1] - LENGTHS[low]))
        length = 193 if equal else length
        ids = [rng.randrange(3, vocabulary) for _ in range(length)]
        prompt = round(0.15 * length)
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def read_rows(path: str, tokenizer: str, count: int) -> list[dict[str, list[int]]]:
    """The first rows of a file, as graft prepares them."""
    from transformers import AutoTokenizer

    from graft.config import TaskType
    from graft.data.config import DataConfig
    from graft.data.prepare import prepare_data

    own = AutoTokenizer.from_pretrained(tokenizer)
    data = prepare_data(DataConfig(train=path, max_rows=count), own, TaskType.CAUSAL_LM, 0)
    return [{key: list(row[key]) for key in ("input_ids", "labels")} for row in data.train]


def make_model(shape: str, bf16: bool, **changes: Any) -> Any:
    """A base model of `shape` with random weights, always the same."""
    import torch
    import transformers

    name, settings = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**settings, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    return model.to(torch.bfloat16 if bf16 else torch.float32)


def adapter_config(package: Any, shape: str, method: str, **changes: Any) -> Any:
    """The config of a method, of graft's or of PEFT's class."""
    name, settings = METHODS[method]
    targets = TARGETS.get((shape, method), {})
    return getattr(package, name)(task_type="CAUSAL_LM", **{**settings, **targets, **changes})
