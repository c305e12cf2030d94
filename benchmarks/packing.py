"""What packed rows give over padded ones, for models that are no plain language models.

    python benchmarks/packing.py [--rounds 7] [--threads 2] [--dtype bfloat16]

For each kind of model (random weights) a training step, forward and backward, of eight rows of 50
to 400 tokens, packed and padded in turn on the same rows, without dropout. Figures are ratios
within a round, padded over packed, with the range over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from graft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from graft.packing import PackedLayers, PackedPairs, without_cache

ROWS, SHORTEST, LONGEST, VOCABULARY = 8, 50, 400, 32000
T5 = {
    "vocab_size": VOCABULARY, "d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6,
    "num_heads": 8, "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 576, "num_hidden_layers": 6, "pad_token_id": 0,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
}  # fmt: skip
LORA = LoraConfig(r=8, target_modules="all-linear")
PROMPT, PREFIX = (
    PromptTuningConfig(num_virtual_tokens=20),
    PrefixTuningConfig(num_virtual_tokens=20),
)
CASES = {
    "T5, LoRA": ("T5", T5, "SEQ_2_SEQ_LM", LORA),
    "T5, Prompt-Tuning": ("T5", T5, "SEQ_2_SEQ_LM", PROMPT),
    "T5, Prefix-Tuning": ("T5", T5, "SEQ_2_SEQ_LM", PREFIX),
    "BERT to classify, Prompt-Tuning": ("Bert", BERT, "SEQ_CLS", PROMPT),
    "BERT to classify, Prefix-Tuning": ("Bert", BERT, "SEQ_CLS", PREFIX),
    "Llama to classify, Prompt-Tuning": ("Llama", LLAMA, "SEQ_CLS", PROMPT),
}
AUTO = {
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
}


def lengths(dice: torch.Generator) -> list[int]:
    return torch.randint(SHORTEST, LONGEST + 1, (ROWS,), generator=dice).tolist()


def batch(task: str) -> dict[str, Tensor]:
    """Eight rows, padded; targets of a sequence-to-sequence model are a third as long."""
    dice = torch.Generator().manual_seed(1)

    def padded(sizes: list[int], value: int) -> Tensor:
        rows = [torch.randint(3, VOCABULARY, (size,), generator=dice) for size in sizes]
        return torch.nn.utils.rnn.pad_sequence(rows, True, value)

    ids = padded(lengths(dice), 0)
    targets = padded([size // 3 for size in lengths(dice)], -100)
    labels = targets if task == "SEQ_2_SEQ_LM" else torch.arange(ROWS) % 2
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def steps(model: PeftModel, inputs: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The loss of a step, packed and padded."""
    options = without_cache(model)

    def padded() -> Tensor:
        return model(**inputs, **options).loss

    if inputs["labels"].ndim > 1:
        pairs = PackedPairs(model)
        count = int((inputs["labels"] != -100).sum())
        rows = [ids[m.bool()] for ids, m in zip(*list(inputs.values())[:2], strict=True)]
        weights = [1 / count] * ROWS
        return {"packed": lambda: pairs.loss(rows, list(inputs["labels"]), weights)[0],
                "padded": padded}  # fmt: skip
    layers = PackedLayers(model)

    def packed() -> Tensor:
        with layers.packing(inputs["attention_mask"]):
            return padded()

    return {"packed": packed, "padded": padded}


def measured(name: str, rounds: int, dtype: torch.dtype) -> str:
    kind, sizes, task, config = CASES[name]
    torch.manual_seed(0)
    made: Any = getattr(transformers, f"{kind}Config")(**sizes)
    base = AUTO[task].from_config(made).to(dtype)
    model = get_peft_model(base, config.changed(task_type=task)).train()
    both = steps(model, batch(task))
    times: dict[str, list[float]] = {way: [] for way in both}
    losses = {}
    for turn in range(rounds + 1):
        for way, loss in both.items():
            start = time.perf_counter()
            value = loss()
            value.backward()
            if turn:  # the first one warms up
                times[way].append(time.perf_counter() - start)
            losses[way] = value.item()
            model.zero_grad()
    ratios = sorted(b / a for a, b in zip(times["packed"], times["padded"], strict=True))
    return (
        f"{name:34s} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   "
        f"loss {losses['packed']:.4f}, {losses['padded']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--case", choices=CASES, help="one of them alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    inputs = batch("SEQ_CLS")["attention_mask"]
    print(f"padding: {1 - inputs.float().mean():.0%}; padded over packed, {given.dtype}")
    for name in [given.case] if given.case else CASES:
        print(measured(name, given.rounds, getattr(torch, given.dtype)), flush=True)


if __name__ == "__main__":
    main()
