"""How long Alpaca-like rows take to become tokens, at first and from the cache, and in what memory.

    python benchmarks/prepare.py [--rows 100000] [--tokenizer FOLDER]

Rows are made from a seed, with the lengths that alpaca_en_demo (LLaMA-Factory) has; words have the
frequencies of a language, so that a tokenizer's cache helps as it does on text. Without a tokenizer
a byte-level one is trained on the rows. Each run is a process of its own, with torch and
transformers imported, as `graft train` is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Words in a column: the quantiles 0, 5 %, ..., 100 % of the 999 rows.
LENGTHS = {
    "instruction": [4, 6, 6, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 11, 11, 12, 13, 13, 14, 17, 73],
    "input": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 5, 7, 9, 12, 19, 121],
    "output": [
        *(1, 6, 8, 10, 13, 19, 24, 33, 46, 60, 81),
        *(98, 118, 137, 170, 199, 224, 246, 279, 305, 429),
    ],
}
# The most frequent words are English, the rest is made of syllables.
COMMON = (
    "the to and a of in is for that with as it on are can be this by your or an you from at their "
    "which has have not will such was they more its also we these one other into when all time "
    "some use if how up our about out them may people data who new used while different should "
    "information many could than what make most way two there help over each first between "
    "provide example world like life through work well system where after water health food "
    "energy important need keep being both often"
)
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """`count` rows with the columns of `LENGTHS`."""
    rng = random.Random(seed)
    syllables = [a + b for a in ("", *"bcdfghklmnprstvw") for b in ("a", "e", "i", "o", "u", "en")]
    made = ("".join(rng.choices(syllables, k=2 + n % 3)) for n in range(20_000))
    vocabulary = list(dict.fromkeys([*COMMON.split(), *made]))
    weights = [(rank + 3) ** -1.2 for rank in range(len(vocabulary))]

    def text(quantiles: list[int]) -> str:
        place = rng.random() * (len(quantiles) - 1)
        low, high = quantiles[int(place)], quantiles[int(place) + 1]
        length = round(low + (high - low) * (place % 1))
        words = rng.choices(vocabulary, weights, k=length)
        for at in range(7, length, 13):
            words[at] += rng.choice([",", ".", ".\n", ":"])
        return " ".join(words).capitalize()

    for number in range(count):
        row = {name: text(quantiles) for name, quantiles in LENGTHS.items()}
        yield {**row, "instruction": f"{row['instruction']} {number}?"}  # no two are the same


def train_tokenizer(rows: Iterator[dict[str, str]], folder: Path) -> None:
    """A byte-level BPE of 6,400 tokens with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((" ".join(row.values()) for row in rows), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def measure(data: str, tokenizer_folder: str) -> dict[str, Any]:
    """What one run takes; in a process that does nothing else."""
    import resource

    from graft.cli import quieten

    began = time.perf_counter()
    quieten()
    import torch  # noqa: F401
    from transformers import AutoTokenizer

    from graft.config import TaskType
    from graft.data.config import DataConfig
    from graft.data.prepare import prepare_data

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    imported = time.perf_counter()
    used = time.process_time()
    config = DataConfig(train=data, eval_fraction=0.05)
    heard: list[str] = []
    prepared = prepare_data(config, tokenizer, TaskType.CAUSAL_LM, 0, heard.append)
    seconds = time.perf_counter() - imported
    used = time.process_time() - used
    first = prepared.train[0]["input_ids"]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "import_seconds": round(imported - began, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "rows_per_second": round(prepared.rows_read / seconds),
        "rows": prepared.rows_read,
        "tokens": prepared.tokens,
        "first_row": len(first),
        "said": heard,
    }


def main() -> None:
    """Make the rows, run cold and warm, print a line for each and then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokenizer", help="a folder; else one is trained on the rows")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for row in make_rows(options.rows):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        tokenizer = options.tokenizer
        if tokenizer is None:
            tokenizer = str(Path(folder) / "tokenizer")
            train_tokenizer(make_rows(min(options.rows, 5000)), Path(tokenizer))
        environment = os.environ | {"GRAFT_CACHE": str(Path(folder) / "cache")}
        found: dict[str, Any] = {"file_mib": round(data.stat().st_size / 2**20)}
        for run in ("cold", "warm"):
            command = [sys.executable, __file__, "--measure", str(data), tokenizer]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            found[run] = told = json.loads(done.stdout)
            print(
                f"{run}: {told['rows']:,} rows, {told['tokens']:,} tokens in {told['seconds']} s "
                f"({told['rows_per_second']:,} rows/s, {told['cpu_seconds']} s of CPU), "
                f"peak {told['peak_rss_mib']:,} MiB"
            )
        cache = Path(folder, "cache").iterdir()
        found["cache_mib"] = round(sum(path.stat().st_size for path in cache) / 2**20)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
