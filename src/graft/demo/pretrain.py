"""Pretrain the bundled base model from a seed: `python -m graft.demo.pretrain`.

Trains a byte-level BPE tokenizer and a small Llama on the text of `corpus.py`, and writes both
with the recipe (`RECIPE.json`) as a plain transformers folder. Linear layers have biases, so that
BitFit has something to train. Adapting the model is left to the rest of graft.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention

from graft.demo import demo_model_path
from graft.demo.corpus import pretraining_text

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)  # their ids
MAX_LENGTH = 512  # tokens
IGNORED = -100  # the label that transformers' loss leaves out
EMBEDDING_STD = 0.5  # at the start
HELDOUT_SEED_OFFSET = 1  # held-out text comes from the seed after that of the pretraining text
HELDOUT_DOCUMENTS = 1024


@dataclass(frozen=True)
class Recipe:
    """What determines the base model, but for the library versions and the machine."""

    seed: int = 0
    steps: int = 5000
    documents_per_step: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_grad_norm: float = 1.0
    vocab_size: int = 1280  # an upper bound: merging stops when every word is one token
    hidden_size: int = 160
    intermediate_size: int = 480
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer that puts BOS in front, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def build_model(recipe: Recipe, vocab_size: int) -> LlamaForCausalLM:
    """The untrained base model."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=recipe.hidden_size**-0.5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    prepare_to_copy(model)
    return model


@torch.no_grad()
def prepare_to_copy(model: LlamaForCausalLM) -> None:
    """Start where copying a word from the context is easy to learn.

    With transformers' own initialisation a model of this size spends millions of tokens before it
    copies its first word. Two changes shorten that to some hundred thousand: embeddings large
    enough for words to stay apart while they learn their kind (the final norm keeps the logits
    small), and output projections that start as the transpose of the value projections, so that
    a head passes on what it attends to (in the spirit of mimetic initialisation, Trockman and
    Kolter 2023, arXiv:2305.09828).
    """
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    torch.nn.init.constant_(model.model.norm.weight, 0.06 / EMBEDDING_STD)
    for attention in model.modules():
        if isinstance(attention, LlamaAttention):
            values = torch.nn.init.orthogonal_(attention.v_proj.weight)
            values = values.unflatten(0, (-1, attention.head_dim))  # [H, K, D]
            values = values.repeat_interleave(attention.num_key_value_groups, dim=0)
            attention.o_proj.weight.copy_(0.8 * EMBEDDING_STD * values.flatten(0, 1).T)


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> list[list[int]]:
    """Token ids of documents, each from BOS to EOS."""
    return [[*encoding.ids, EOS] for encoding in tokenizer.encode_batch(list(documents))]


def batches(rows: Sequence[list[int]], size: int) -> Iterator[dict[str, Tensor]]:
    """Right-padded batches of rows of similar length, the batches in random order."""
    rows = sorted(rows, key=len)
    starts = range(0, len(rows), size)
    for index in torch.randperm(len(starts)).tolist():
        batch = rows[starts[index] : starts[index] + size]
        width = len(batch[-1])
        input_ids = torch.tensor([row + [PAD] * (width - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        labels = input_ids.masked_fill(mask == 0, IGNORED)
        yield {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def corpus_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, documents: Sequence[str]) -> float:
    """Mean cross entropy per token over documents, in nats."""
    return mean_loss(
        [
            (model(**batch).loss.item(), int((batch["labels"][:, 1:] != IGNORED).sum()))
            for batch in batches(encode(tokenizer, documents), 64)
        ]
    )


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def train(model: LlamaForCausalLM, rows: Sequence[list[int]], recipe: Recipe) -> tuple[float, int]:
    """Train in place, one pass over `rows`; returns the final loss and the tokens seen.

    The final loss is the mean over the last twentieth of the steps.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe)
    )
    history: list[tuple[float, int]] = []  # loss and tokens of each step
    start = time.perf_counter()
    for batch in batches(rows, recipe.documents_per_step):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append((loss.item(), int(batch["attention_mask"].sum())))
        if len(history) % 100 == 0:
            recent, seconds = mean_loss(history[-100:]), time.perf_counter() - start
            print(f"step {len(history)}/{recipe.steps}  loss {recent:.4f}  {seconds:.0f} s")
    final = history[-max(1, len(history) // 20) :]
    return mean_loss(final), sum(tokens for _, tokens in history)


def mean_loss(history: Sequence[tuple[float, int]]) -> float:
    """The mean per token over steps of (loss, tokens)."""
    return sum(loss * tokens for loss, tokens in history) / sum(tokens for _, tokens in history)


def save(
    folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, record: dict[str, Any]
) -> None:
    """Write the folder's files, each put in place whole.

    Weights are stored in half precision (`model` must hold such values already); the config says
    float32, so that this is what loading gives.
    """
    pad, bos, eos = SPECIAL_TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model.half().save_pretrained(scratch)
        model.float().config.dtype = torch.float32
        model.config.save_pretrained(scratch)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=pad,
            bos_token=bos,
            eos_token=eos,
            model_max_length=MAX_LENGTH,
        ).save_pretrained(scratch)
        (Path(scratch) / "RECIPE.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in Path(scratch).iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)


def pretrain(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Train tokenizer and model by the recipe and write them to `folder`.

    Returns:
        What `RECIPE.json` holds: the recipe and what came of it.
    """
    torch.manual_seed(recipe.seed)
    documents = pretraining_text(recipe.seed, recipe.steps * recipe.documents_per_step)
    tokenizer = train_tokenizer(documents, recipe.vocab_size)
    model = build_model(recipe, tokenizer.get_vocab_size())
    model.generation_config = GenerationConfig(
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        do_sample=False,
    )
    start = time.perf_counter()
    final_loss, tokens = train(model, encode(tokenizer, documents), recipe)
    seconds = time.perf_counter() - start
    model.half().float().eval()  # from here on the values that are stored
    heldout = pretraining_text(recipe.seed + HELDOUT_SEED_OFFSET, HELDOUT_DOCUMENTS)
    record = {
        "recipe": asdict(recipe),
        "parameters": model.num_parameters(),
        "tokens_seen": tokens,
        "final_loss": final_loss,
        "heldout_loss": corpus_loss(model, tokenizer, heldout),
        "seconds": round(seconds),
        "torch_version": torch.__version__,
    }
    save(folder, model, tokenizer, record)
    return record


def main() -> None:
    """Pretrain by the default recipe and say what came of it."""
    parser = argparse.ArgumentParser(description="Pretrain graft's bundled demo base model.")
    parser.add_argument("--output", type=Path, default=demo_model_path(), metavar="FOLDER")
    folder = parser.parse_args().output
    print(json.dumps(pretrain(folder, Recipe()), indent=2))
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
