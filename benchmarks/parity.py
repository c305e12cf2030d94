"""The loss on held-out rows after training in bfloat16: graft's beside PEFT's, seed by seed.

    python benchmarks/parity.py [--stories FOLDER --text FILE] [--seeds 3] [--minutes 14]

The base model is in bf16, adapters in fp32. Both start from the same weights (PEFT's) and take the
same rows in the same order, with the same optimizer and schedule; PEFT in a plain loop over padded
batches, graft by its own on packed rows. Both are judged by the same code. Tasks: a model of
SmolLM2's shape with random weights that learns how frequent its tokens are, and, where it is given,
a small real model (`--stories`, such as stories260K) that learns a text (`--text`).

In fp32 the losses of fifty steps are equal: `tests/training/test_parity.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from quality import plain_loop
from report import Clock, save, spread
from shapes import adapter_config, make_model

import graft
from graft.comparison import spread as spreads
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.hub import load_model, load_tokenizer
from graft.training.config import TrainConfig
from graft.training.evaluate import evaluate
from graft.training.learner import Run
from graft.training.loop import fit

LM = TaskType.CAUSAL_LM
RATES = {
    "lora": 5e-3,
    "ia3": 5e-2,
    "prompt_tuning": 5e-2,
    "p_tuning": 1e-2,
    "prefix_tuning": 5e-2,
}


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        base: Makes the base model, in bf16.
        train: Rows; so is `heldout`.
        collate: Rows -> batch.
        steps: Optimizer steps.
        rows: Rows in a step.
    """

    base: Callable[[], Any]
    train: Any
    heldout: Any
    collate: Collator
    steps: int
    rows: int


class Pads:
    """All that a collator asks of a tokenizer."""

    pad_token_id, eos_token_id = 0, 0


def frequencies(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of 16 to 96 ids, of which a few are far more frequent than the others."""
    dice = np.random.default_rng(seed)
    chances = np.arange(1, 1001) ** -1.2
    chances /= chances.sum()
    rows = []
    for _ in range(count):
        ids = (3 + dice.choice(1000, dice.integers(16, 97), p=chances)).tolist()
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def tasks(stories: str | None, text: Path | None, folder: Path) -> dict[str, Task]:
    found: dict[str, Task] = {}
    if stories is not None and text is not None:
        given = text.read_text(encoding="utf-8")
        at = int(0.9 * len(given))
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"train": given[:at], "eval": given[at : at + 40_000]}
        for name, part in parts.items():
            (folder / f"parity-{name}.txt").write_text(part, encoding="utf-8")
        places = {name: str(folder / f"parity-{name}.txt") for name in parts}
        tokenizer = load_tokenizer(stories)
        data = prepare_data(DataConfig(**places, max_length=128), tokenizer, LM, 0)
        found["stories"] = Task(
            lambda: load_model(stories, LM, dtype=torch.bfloat16),
            data.train, data.eval, Collator(tokenizer, LM), 100, 8,
        )  # fmt: skip
    found["smollm2"] = Task(
        lambda: make_model("smollm2", bf16=True),
        frequencies(64, 0), frequencies(24, 1), Collator(Pads(), LM), 12, 4,  # pyright: ignore
    )  # fmt: skip
    return found


def measure(task: Task, method: str, seed: int) -> dict[str, float]:
    """The loss on held-out rows: of the base model, and after training with each library."""
    settings = TrainConfig(
        per_device_train_batch_size=task.rows,
        max_steps=task.steps,
        learning_rate=RATES[method],
        warmup_ratio=0.1,
        logging_steps=1000,
        seed=seed,
    )
    torch.manual_seed(seed)
    theirs = peft.get_peft_model(task.base(), adapter_config(peft, "smollm2", method))
    ours = graft.get_peft_model(task.base(), adapter_config(graft, "smollm2", method))
    copy_weights(theirs, ours)

    def judged(model: Any) -> float:
        model.eval()
        return evaluate(model, task.heldout, task.collate, LM, 8, torch.device("cpu"))["loss"]

    with ours.disable_adapter():
        before = judged(ours)
    fit(ours, Run(task.train, None, settings), task.collate, task_type=LM)
    plain_loop(theirs, task.train, task.collate, settings, LM)
    return {"before": before, "graft": judged(ours), "peft": judged(theirs)}


def copy_weights(theirs: Any, ours: graft.PeftModel) -> None:
    """Give graft's adapter the weights of PEFT's, an encoder of virtual tokens included."""
    virtual = ours.adapter("default").virtual_tokens
    if virtual is not None and virtual.encoder is not None:
        virtual.encoder.load_state_dict(theirs.prompt_encoder["default"].state_dict())
    graft.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))


def table(records: list[dict[str, Any]]) -> list[str]:
    """Mean and range over seeds, as Markdown."""
    lines = [
        "| task | method | before | graft | peft | graft less peft, by seed | |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["task"], r["method"]) for r in records):
        own = [r for r in records if (r["task"], r["method"]) == key]
        ours, theirs = ([r[name] for r in own] for name in ("graft", "peft"))
        worse = len(own) > 1 and spreads.better(spreads.spread(theirs), spreads.spread(ours), False)
        cells = [
            *key,
            f"{own[0]['before']:.3f}",
            spread(ours, 3),
            spread(theirs, 3),
            spread([a - b for a, b in zip(ours, theirs, strict=True)], 4),
            "**graft is worse**" if worse else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--stories", help="folder of a small real model")
    parser.add_argument("--text", type=Path, help="what it learns")
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    Clock.add_to(parser, 14)
    arguments = parser.parse_args()
    clock, records = Clock(arguments.minutes), []
    every = tasks(arguments.stories, arguments.text, arguments.output)
    for seed in range(arguments.seeds):
        for name, task in every.items():
            for method in arguments.methods.split(","):
                if records and clock.is_over:
                    continue
                found = measure(task, method, seed)
                records.append({"task": name, "method": method, "seed": seed, **found})
                print(f"{name} {method} seed {seed}: {found}", file=sys.stderr, flush=True)
    print("\n".join(table(records)))
    print(save(arguments.output, "parity", records))


if __name__ == "__main__":
    main()
