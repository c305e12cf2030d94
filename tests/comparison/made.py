"""Comparisons that were never run, for what shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graft.comparison.results import Base, Comparison, Inference, Measured, Point, Row, Sample
from graft.comparison.spread import group_rows

BASE_LOSS = 4.0


def made(
    losses: Mapping[str, Sequence[float | None]], *, said: str = "", **changes: object
) -> Comparison:
    """A comparison of points by name, with the loss of each of their seeds.

    Args:
        losses: None for a seed that failed.
        said: Stands in whatever a user or a model could have written.
        changes: Fields of the result.
    """
    names = [name + said for name in losses]
    points = [Point(name, name, "lora", {"adapter.r": 2**i}) for i, name in enumerate(names)]
    rows = tuple(
        _row(name, seed, loss, place, said)
        for place, (name, own) in enumerate(zip(names, losses.values(), strict=True))
        for seed, loss in enumerate(own)
    )
    settings = {
        "task_type": "CAUSAL_LM",
        "metric": "loss",
        "base": Base(
            name=f"a/base{said}",
            parameters=1_400_800,
            dtype="float32",
            device="cpu",
            quality={"loss": BASE_LOSS, "perplexity": math.exp(BASE_LOSS)},
            text_loss=2.5,
            inference=Inference("tokens/s", 950.0, 950.0),
        ),
        "train_rows": 360,
        "eval_rows": 40,
        "data_sha256": {f"rows{said}.jsonl": "ab" * 32},
        "text": f"text{said}.txt",
        "seeds": tuple(range(max(map(len, losses.values())))),
        "planned": len(rows),
        "rows": rows,
        "groups": group_rows(points, rows, "loss", False),
        "versions": {"torch": f"2.13{said}"},
        "system": {"cpu": f"a processor{said}"},
        "created_at": "2026-11-25T10:20:30+00:00",
    }
    return Comparison(**(settings | changes))


def _row(name: str, seed: int, loss: float | None, place: int, said: str) -> Row:
    config = {
        "base_model": f"a/base{said}",
        "adapters": {name: {"method": "lora", "r": 2**place, "note": said or None}},
        "train": {"seed": seed, "max_steps": 20, "output_dir": f"out/{name}"},
    }
    measured = None if loss is None else _measured(loss, place, said)
    error = f"The loss is gone.{said}" if loss is None else ""
    when = "2026-11-25T10:20:30+00:00"
    return Row(name, seed, f"{name}/{seed}", config, None, {}, when, measured, error)


def _measured(loss: float, place: int, said: str) -> Measured:
    merged = None if place == 1 else 900.0
    return Measured(
        quality={"loss": loss, "perplexity": math.exp(loss)},
        forgetting=0.125,
        trainable_parameters=1000 * 4**place,
        all_parameters=1_400_800 + 1000 * 4**place,
        adapter_bytes=4000 * 4**place,
        peak_bytes=(place + 2) * 2**30,
        average_bytes=2**30,
        high_bytes=2**30,
        steps=20,
        rows=160,
        tokens=5000,
        seconds=3.0 + place,
        total_seconds=9.0,
        tokens_per_second=1250.0,
        inference=Inference("tokens/s", 800.0, merged, "" if merged else f"No merge.{said}"),
        samples=tuple(
            Sample(f"prompt {i}{said}", f"wanted{said}", f"base{said}", f"loss {loss}{said}")
            for i in range(3)
        ),
        log=tuple(
            {"step": step, "eval_loss" if step % 20 == 0 else "loss": loss + 2 / (1 + step)}
            for step in range(0, 21, 5)
        ),
    )
