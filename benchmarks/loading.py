"""How long it takes to load adapters onto a base model, in graft and in PEFT.

    python benchmarks/loading.py [--model smollm2] [--counts 1,8,64] [--rounds 5]

LoRA r=8 on all linear layers, in fp32, in folders of PEFT's format; the base model is in bf16 and
loaded already. Each measurement begins with a base model without adapters. Figures are seconds,
and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Clock, ratios, save, spread
from shapes import SHAPES, adapter_config, make_model


def make_adapters(folder: Path, shape: str, count: int) -> None:
    """`count` adapters as PEFT saves them."""
    import peft
    import torch

    config = adapter_config(peft, shape, "lora", init_lora_weights=False)
    model = peft.get_peft_model(make_model(shape, bf16=True), config)
    for number in range(count):
        torch.manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(folder / str(number))


def measure(runner: str, shape: str, folders: list[str]) -> dict[str, Any]:
    """Load the adapters one after the other; seconds of the first, and of all."""
    import peft

    import graft

    package = {"graft": graft, "peft": peft}[runner]
    base = make_model(shape, bf16=True)
    start = time.perf_counter()
    model = package.PeftModel.from_pretrained(base, folders[0])
    first = time.perf_counter() - start
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, f"adapter{number}")
    return {"seconds": time.perf_counter() - start, "first_seconds": first}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)],
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job['runner']}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(records: list[dict[str, Any]]) -> list[str]:
    """Medians, and the ranges of PEFT's time over graft's within a round, as Markdown."""
    lines = ["| adapters | graft, s | peft, s | peft's time over graft's |", "|---|---|---|---|"]
    for count in dict.fromkeys(r["count"] for r in records):
        own = [r for r in records if r["count"] == count]
        seconds = [
            spread([r["seconds"] for r in own if r["runner"] == runner])
            for runner in ("graft", "peft")
        ]
        ratio = spread(ratios(own, "peft", "graft", "seconds"))
        lines.append(f"| {' | '.join([str(count), *seconds, ratio])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="smollm2")
    parser.add_argument("--counts", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    Clock.add_to(parser, 14)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(**json.loads(arguments.job))))
        return
    counts = [int(count) for count in arguments.counts.split(",")]
    clock, records = Clock(arguments.minutes), []
    with tempfile.TemporaryDirectory() as folder:
        make_adapters(Path(folder), arguments.model, max(counts))
        for number in range(arguments.rounds):
            if number and clock.is_over:
                break
            for count in counts:
                for runner in ("graft", "peft"):
                    folders = [f"{folder}/{each}" for each in range(count)]
                    job = {"runner": runner, "shape": arguments.model, "folders": folders}
                    found = run_job(job)
                    records.append({"runner": runner, "count": count, "round": number, **found})
                    print(f"round {number} {runner} {count}: {found}", file=sys.stderr, flush=True)
    print("\n".join(table(records)))
    print(save(arguments.output, f"loading-{arguments.model}", records))


if __name__ == "__main__":
    main()
