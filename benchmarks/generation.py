"""Generation with adapters, in graft and in PEFT: unmerged, merged, and four adapters in a batch.

    python benchmarks/generation.py [--model smollm2] [--dtypes bf16,fp32] [--rounds 5]

Random weights, LoRA r=8 on all linear layers, greedy, a cache, always the same number of tokens.
A round runs each runner once, one after the other, in one process; figures are ratios within a
round. `one batch` is eight rows, two of each of four adapters, by `adapter_names`; `in turn` is
the four adapters one after the other, two rows each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from report import Clock, ratios, save, spread
from shapes import SHAPES, adapter_config, make_model

import graft

NAMES = ("default", "second", "third", "fourth")
PROMPT = 64  # tokens
ROWS = (1, 8)  # in a batch


class Contender:
    """A library's model with four adapters."""

    def __init__(self, package: Any, shape: str, bf16: bool) -> None:
        self.name = "graft" if package is graft else "peft"
        config = adapter_config(package, shape, "lora", init_lora_weights=False)
        self.model = package.get_peft_model(make_model(shape, bf16), config)
        for name in NAMES[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()

    def runs(self, tokens: int) -> Iterator[tuple[str, int, Callable[[], None]]]:
        """Setting, rows of the batch, and what to time."""
        for rows in ROWS:
            yield "unmerged", rows, lambda rows=rows: self.generate(rows, tokens)
        with self.merged():
            for rows in ROWS:
                yield "merged", rows, lambda rows=rows: self.generate(rows, tokens)
        names = [name for name in NAMES for _ in range(2)]
        yield "one batch", 8, lambda: self.generate(8, tokens, adapter_names=names)
        yield "in turn", 8, lambda: self.in_turn(tokens)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The active adapter in the weights, inside the block."""
        self.model.merge_adapter()
        yield
        self.model.unmerge_adapter()

    def in_turn(self, tokens: int) -> None:
        for name in NAMES:
            self.model.set_adapter(name)
            self.generate(2, tokens)
        self.model.set_adapter(NAMES[0])

    def generate(self, rows: int, tokens: int, **more: Any) -> None:
        dice = torch.Generator().manual_seed(rows)
        ids = torch.randint(3, 40_000, (rows, PROMPT), generator=dice)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
        assert out.shape == (rows, PROMPT + tokens)


def measure(arguments: argparse.Namespace, dtype: str, clock: Clock) -> list[dict[str, Any]]:
    """All rounds in one number format; one record a measurement."""
    import peft

    both = [Contender(each, arguments.model, dtype == "bf16") for each in (graft, peft)]
    records = []
    for number in range(-1, arguments.rounds):  # the first round warms up
        tokens = 2 if number < 0 else arguments.tokens
        if number > 0 and clock.is_over:
            break
        for pair in zip(*(contender.runs(tokens) for contender in both), strict=True):
            for contender, (setting, rows, run) in zip(both, pair, strict=True):
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
                if number < 0:
                    continue
                rate = rows * tokens / seconds
                key = {"dtype": dtype, "setting": setting, "rows": rows, "round": number}
                records.append({**key, "runner": contender.name, "tokens_per_second": rate})
                text = f"{dtype} round {number} {contender.name} {setting}, {rows} rows"
                print(f"{text}: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
    return records


def table(records: list[dict[str, Any]]) -> list[str]:
    """Medians, and the ranges of graft's speed over PEFT's within a round, as Markdown."""
    lines = [
        "| | setting | rows | graft, tokens/s | peft, tokens/s | graft over peft |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["dtype"], r["setting"], r["rows"]) for r in records):
        own = [r for r in records if (r["dtype"], r["setting"], r["rows"]) == key]
        rates = [
            spread([r["tokens_per_second"] for r in own if r["runner"] == runner], 1)
            for runner in ("graft", "peft")
        ]
        ratio = spread(ratios(own, "graft", "peft", "tokens_per_second"))
        lines.append(f"| {' | '.join(map(str, [*key, *rates, ratio]))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="smollm2")
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="to generate")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    Clock.add_to(parser, 14)
    arguments = parser.parse_args()
    formats = arguments.dtypes.split(",")
    records = []
    for dtype in formats:  # each has its share of the time
        records += measure(arguments, dtype, Clock(arguments.minutes / len(formats)))
    print("\n".join(table(records)))
    print(save(arguments.output, f"generation-{arguments.model}", records))


if __name__ == "__main__":
    main()
