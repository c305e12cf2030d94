"""Adapters trained together on one base model, against one after another, in graft and in PEFT.

    python benchmarks/together.py [--counts 2,6,12] [--batches 8] [--rounds 3] [--minutes 14]

N adapters of the six methods in turn, each with rows of its own, on a base model of a known shape
with random weights. `together` is one run in one process; `graft` and `peft` are a run for each
adapter, a process each, whose seconds are added up and of whose peaks the largest counts. PEFT has
no BitFit: LoRA takes its place there. Figures are ratios within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import Clock, ratios, save, spread
from shapes import SHAPES, adapter_config, make_model, make_rows

import training

METHODS = ("lora", "ia3", "bitfit", "prompt_tuning", "p_tuning", "prefix_tuning")
Job = dict[str, Any]


def measure(job: Job) -> dict[str, Any]:
    """Train all adapters of `job` in one run; seconds of a round and the peak of memory."""
    import graft
    from graft.adapt import PeftModel
    from graft.config import TaskType
    from graft.data.collate import Collator
    from graft.training.attachment import attach
    from graft.training.learner import Run
    from graft.training.loop import fit
    from graft.training.report import Callback

    model = PeftModel(make_model(job["model"], job["dtype"] == "bf16"))
    settings = graft.TrainConfig(
        per_device_train_batch_size=job["batch"], learning_rate=1e-4, logging_steps=1
    )
    runs = {}
    for number, method in enumerate(methods_of(job["count"])):
        rows = rows_of(job, number, model.config.vocab_size)
        runs[f"{method}-{number}"] = Run(rows, None, settings)
        attach(model, adapter_config(graft, job["model"], method), number, f"{method}-{number}")
    meter, last = training.Meter(), list(runs)[-1]

    class Rounds(Callback):
        def of(self, adapter: str | None) -> Callback:
            return self if adapter == last else Callback()

        def on_step(self, step: int) -> None:
            meter.step()

    collate = Collator(None, TaskType.CAUSAL_LM)
    fit(model, runs, collate, task_type=TaskType.CAUSAL_LM, callbacks=[Rounds()])
    found = meter.result(0, [], [])
    return {"seconds": found["seconds_per_step"], "peak_bytes": found["peak_bytes"]}


def methods_of(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(METHODS), count))


def rows_of(job: Job, number: int, vocabulary: int) -> list[dict[str, list[int]]]:
    count = job["batch"] * (job["steps"] + training.WARM_UP)
    return make_rows(count, vocabulary, seed=number)


def one_after_another(job: Job) -> dict[str, Any]:
    """A run for each adapter: seconds of a step of each, added up, and the largest peak."""
    found = []
    for number, method in enumerate(methods_of(job["count"])):
        chosen = "lora" if job["runner"] == "peft" and method == "bitfit" else method
        found.append(
            training.run_job(
                {
                    **job,
                    "method": chosen,
                    "rows": rows_of(job, number, SHAPES[job["model"]][1].get("vocab_size", 50257)),
                    "equal": False,
                    "checkpointing": False,
                }
            )
        )
    return {
        "seconds": sum(own["seconds_per_step"] for own in found),
        "peak_bytes": max(own["peak_bytes"] for own in found),
    }


def together(job: Job) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of all combinations until the time is over; one record a measurement."""
    clock, records = Clock(arguments.minutes), []
    counts = [int(count) for count in arguments.counts.split(",")]
    batches = [int(size) for size in arguments.batches.split(",")]
    for number in range(arguments.rounds):
        for count, batch in itertools.product(counts, batches):
            if records and clock.is_over:
                return records
            job = {"model": arguments.model, "dtype": arguments.dtype, "count": count}
            job |= {"batch": batch, "steps": arguments.steps}
            for runner in arguments.runners.split(","):
                job["runner"] = runner
                run = together if runner == "together" else one_after_another
                records.append({**job, "round": number, **run(job)})
                found = records[-1]
                print(
                    f"round {number}, {count} adapters, batches of {batch}, {runner}: "
                    f"{found['seconds']:.2f} s, {found['peak_bytes'] / 2**20:.0f} MiB",
                    file=sys.stderr,
                    flush=True,
                )
    return records


def table(records: list[dict[str, Any]]) -> list[str]:
    """Medians and ranges of the ratios within a round, as Markdown."""
    lines = [
        "| adapters | batch | beside | together's time over it | together's peak over it |",
        "|---|---|---|---|---|",
    ]
    for count, batch in dict.fromkeys((r["count"], r["batch"]) for r in records):
        own = [r for r in records if (r["count"], r["batch"]) == (count, batch)]
        for runner in dict.fromkeys(r["runner"] for r in own if r["runner"] != "together"):
            time, peak = (
                spread(ratios(own, "together", runner, figure))
                for figure in ("seconds", "peak_bytes")
            )
            lines.append(f"| {count} | {batch} | {runner} | {time} | {peak} |")
    return lines


def main() -> None:
    if sys.argv[1:] == ["--job"]:
        print(json.dumps(measure(json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2", choices=SHAPES)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--counts", default="2,6,12", help="numbers of adapters")
    parser.add_argument("--batches", default="8", help="rows in a batch of each adapter")
    parser.add_argument("--runners", default="together,graft,peft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    Clock.add_to(parser, 14)
    arguments = parser.parse_args()
    records = compare(arguments)
    print("\n".join(table(records)))
    given = {key: value for key, value in vars(arguments).items() if key != "output"}
    print(save(arguments.output, "together", records, arguments=given))


if __name__ == "__main__":
    main()
