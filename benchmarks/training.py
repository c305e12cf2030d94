"""Training in graft against PEFT with transformers' Trainer, and TRL's SFTTrainer with packing.

    python benchmarks/training.py [--models smollm2] [--dtypes bf16] [--methods lora,prompt_tuning]
        [--runners graft,peft,peft-tuned] [--rounds 5] [--steps 3] [--minutes 14]

Base models have the shapes of known ones and random weights; rows have the lengths of
alpaca_en_demo (LLaMA-Factory), or come from `--rows FILE --tokenizer FOLDER`. Every measurement is
a process of its own; a round runs each runner once, one after the other, on the same rows in the
same order, so that what slows the machine slows all. Figures are ratios within a round.

Runners:
    graft           as `graft train` trains
    graft-X         with one trick left out: packing, fusing, lean, chunks, or the stop of the
                    backward pass below the lowest adapted layer (on the method `lora-top`)
    peft            with transformers' Trainer, as a tutorial writes it
    peft-tuned      the same with glibc's allocator tuned
    peft-autocast   the same with `bf16=True` over a model in fp32
    trl             SFTTrainer with packing, where it is installed

After the rounds a step is told apart: its share of the time that its matrix products alone would
take (the GEMM limit), and what Python costs, as the time of a step whose tensors are tiny.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from report import Clock, ratios, save, spread
from shapes import LENGTHS, METHODS, SHAPES, adapter_config, make_model, make_rows, read_rows

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}
TINY = {  # the same layers, of a size that costs nothing
    "smollm2": {"hidden_size": 18, "intermediate_size": 16, "vocab_size": 64},
    "qwen3": {"hidden_size": 32, "intermediate_size": 16, "head_dim": 2, "vocab_size": 64},
    "gpt2": {"n_embd": 24, "vocab_size": 64},
}
WARM_UP = 1
Job = dict[str, Any]


# --- one measurement, in its own process ------------------------------------------------------


def measure(job: Job) -> dict[str, Any]:
    """Train `job["steps"]` steps after the warm-up; tokens/s, peak memory, losses."""
    if job["runner"] == "limit":
        return gemm_limit(job)
    tiny = job["runner"].startswith("python")
    bf16 = job["dtype"] == "bf16" and job["runner"] != "peft-autocast"
    model = make_model(job["model"], bf16, **(TINY[job["model"]] if tiny else {}))
    rows = job["rows"] or make_rows(
        job["batch"] * (job["steps"] + WARM_UP), model.config.vocab_size, job["equal"]
    )
    if tiny:
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]} for _ in rows]
    run = {
        "graft": with_graft, "peft": with_trainer, "trl": with_trl, "python": with_graft,
        "python-bare": without_adapter,
    }  # fmt: skip
    name = job["runner"]
    return run[name if name in run else name.partition("-")[0]](job, model, rows)


def with_graft(job: Job, model: Any, rows: list[Any]) -> dict[str, Any]:
    import graft
    from graft.config import TaskType
    from graft.data.collate import Collator
    from graft.training.config import TrainConfig
    from graft.training.learner import Run
    from graft.training.loop import fit
    from graft.training.report import Callback

    leave_out(job["runner"].partition("-")[2], model)
    adapted = graft.get_peft_model(model, adapter_config(graft, job["model"], job["method"]))
    clock = Meter()

    class Clock(Callback):
        def on_step(self, step: int) -> None:
            clock.step()

    class Pads:
        pad_token_id, eos_token_id = 0, 0

    settings = TrainConfig(
        per_device_train_batch_size=job["batch"],
        learning_rate=1e-4,
        logging_steps=1,
        gradient_checkpointing=job["checkpointing"],
    )
    run = Run(rows, None, settings)
    collate = Collator(Pads(), TaskType.CAUSAL_LM)
    found = fit(adapted, run, collate, task_type=TaskType.CAUSAL_LM, callbacks=[Clock()])[""]
    losses = [record["loss"] for record in found.records if "loss" in record]
    return clock.result(job["batch"], in_order(rows, job["batch"]), losses)


def leave_out(trick: str, model: Any) -> None:
    """Train without one of the things that make training fast or small."""
    from graft.adapt.site import Site
    from graft.packing import head
    from graft.training import forward, loop

    if trick == "packing":
        loop.make_forward = lambda model, task: forward.Padded(model, task, "left out")
    elif trick == "fusing":
        Site.fuses = False
    elif trick == "lean":
        loop.lean_layers = lambda model: nullcontext()
    elif trick == "chunks":
        head._CHUNK_BYTES = 2**40
    elif trick == "stop":
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_())
    elif trick:
        raise SystemExit(f"There is no trick {trick!r}.")


def without_adapter(job: Job, model: Any, rows: list[Any]) -> dict[str, Any]:
    """transformers' own forward and backward pass through all layers."""
    model.requires_grad_(False)
    hook = model.get_input_embeddings().register_forward_hook
    hook(lambda module, args, out: out.requires_grad_())
    clock = Meter()
    for start in range(0, len(rows), job["batch"]):
        model(**padded(rows[start : start + job["batch"]])).loss.backward()
        clock.step()
    return clock.result(job["batch"], rows, [])


def with_trainer(job: Job, model: Any, rows: list[Any]) -> dict[str, Any]:
    import tempfile

    import peft
    import torch
    import transformers

    rows = in_order(rows, job["batch"])

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=peft.get_peft_model(model, adapter_config(peft, job["model"], job["method"])),
            args=transformers.TrainingArguments(
                **trainer_settings(job, folder), per_device_train_batch_size=job["batch"]
            ),
            train_dataset=rows,
            data_collator=padded,
            callbacks=[trainer_clock(meter)],
        )
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return meter.result(job["batch"], rows, losses)


def with_trl(job: Job, model: Any, rows: list[Any]) -> dict[str, Any]:
    import tempfile

    import datasets
    import peft
    import trl

    meter = Meter()
    rows = in_order(rows, job["batch"])
    # A packed row holds about as many tokens as a batch.
    longest = job["batch"] * sum(LENGTHS) // len(LENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                **trainer_settings(job, folder),
                per_device_train_batch_size=1,
                max_length=longest,
                packing=True,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=a_tokenizer(),
            peft_config=adapter_config(peft, job["model"], job["method"]),
            callbacks=[trainer_clock(meter)],
        )
        packed = trainer.train_dataset
        trainer.train()
    tokens = sum(len(row["input_ids"]) for row in packed)
    found = meter.result(0, [], [])
    # The order of the packed rows is TRL's own: their mean stands for each.
    per_step = tokens / len(meter.marks)
    return {**found, "tokens_per_second": per_step / found["seconds_per_step"]}


def a_tokenizer() -> Any:
    """One that TRL can ask for its pad token; rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    known = {"<pad>": 0, "</s>": 1}
    own = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>")


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What DataCollatorForSeq2Seq makes of rows: padded on the right to the longest."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = torch.tensor(row["labels"])
        mask[index, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer_settings(job: Job, folder: str) -> dict[str, Any]:
    """What both of the peers' trainers are told."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": job["runner"] == "peft-autocast",
        "gradient_checkpointing": job["checkpointing"],
    }


def trainer_clock(meter: Meter) -> Any:
    """A callback for transformers' Trainer."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.step()

    return Clock()


class Meter:
    """Seconds of the steps after the warm-up, and the peak of memory from the first step on."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        Path("/proc/self/clear_refs").write_text("5")  # a new peak from here on

    def step(self) -> None:
        self.marks.append(time.perf_counter())

    def result(self, batch: int, rows: list[Any], losses: list[float]) -> dict[str, Any]:
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM:"))
        counted = rows[batch * WARM_UP : batch * len(self.marks)]
        tokens = sum(len(row["input_ids"]) for row in counted)
        seconds = self.marks[-1] - self.marks[WARM_UP - 1]
        return {
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / (len(self.marks) - WARM_UP),
            "tokens_per_step": tokens / (len(self.marks) - WARM_UP),
            "peak_bytes": int(peak.split()[1]) * 1024,
            "losses": losses,
        }


def in_order(rows: list[Any], batch: int) -> list[Any]:
    """The rows as graft's first epoch takes them."""
    from graft.training.batches import Order
    from graft.training.config import TrainConfig

    order = Order(len(rows), batch, TrainConfig().seed)
    return [rows[i] for step in range(order.steps_per_epoch) for i in order.step(step)]


def gemm_limit(job: Job) -> dict[str, Any]:
    """Seconds of a step's matrix products alone: each layer's, there and back; the head's too."""
    import torch
    from transformers.pytorch_utils import Conv1D

    dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
    model = make_model(job["model"], bf16=True)
    rows = job["rows"] or make_rows(job["batch"] * 8, model.config.vocab_size, job["equal"])
    tokens = job["batch"] * sum(len(row["input_ids"]) for row in rows) // len(rows)
    labels = job["batch"] * sum(n != -100 for row in rows for n in row["labels"]) // len(rows)
    head = model.get_output_embeddings()
    shapes = Counter()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            shapes[labels if module is head else tokens, tuple(module.weight.shape)] += 1
        elif isinstance(module, Conv1D):
            shapes[tokens, tuple(module.weight.T.shape)] += 1
    seconds = 0.0
    for (count, (wide, narrow)), number in shapes.items():
        x = torch.randn(count, narrow).to(dtype)
        weight, grad = torch.randn(wide, narrow).to(dtype), torch.randn(count, wide).to(dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            grad @ weight
            times.append(time.perf_counter() - start)
        seconds += number * min(times)
    return {"seconds_per_step": seconds, "tokens_per_second": tokens / seconds}


# --- all of them ------------------------------------------------------------------------------


def run_job(job: Job) -> dict[str, Any]:
    """`measure` in a process of its own, with the allocator that the runner asks for."""
    tuned = TUNED if "tuned" in job["runner"] else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, **tuned, "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job['runner']} of {job['method']}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of all combinations until the time is over; one record a measurement."""
    clock, records = Clock(arguments.minutes), []
    combinations = list(
        itertools.product(
            arguments.models.split(","), arguments.dtypes.split(","), arguments.methods.split(",")
        )
    )
    rows = []
    if arguments.rows:
        count = arguments.batch * (arguments.steps + WARM_UP)
        rows = read_rows(arguments.rows, arguments.tokenizer, count)
    shared: Job = {"rows": rows} | {
        name: getattr(arguments, name) for name in ("steps", "batch", "equal", "checkpointing")
    }

    def add(number: int, key: Job, runner: str) -> None:
        job = {**shared, **key, "runner": runner}
        found = {**job, "round": number, **run_job(job)}
        found.pop("rows")
        records.append(found)
        size = f", {found['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in found else ""
        text = " ".join([key["model"], key["dtype"], key["method"], f"round {number}", runner])
        rate = f"{found['tokens_per_second']:.0f} tokens/s, {found['seconds_per_step']:.3f} s"
        print(f"{text}: {rate}{size}", file=sys.stderr, flush=True)

    for number, (model, dtype, method) in itertools.product(range(arguments.rounds), combinations):
        if records and clock.is_over:
            break
        key = {"model": model, "dtype": dtype, "method": method}
        for runner in arguments.runners.split(","):
            if _can_run(runner, key):
                add(number, key, runner)
        if not number:
            for runner in ("python", "python-bare", "limit"):
                add(number, key, runner)
    return records


def _can_run(runner: str, key: Job) -> bool:
    """Whether there is such a measurement: PEFT has no BitFit, and autocast is of bf16."""
    if runner.startswith(("peft", "trl")) and key["method"] == "bitfit":
        return False
    if runner == "trl" and importlib.util.find_spec("trl") is None:
        return False
    return runner != "peft-autocast" or key["dtype"] == "bf16"


def table(records: list[dict[str, Any]]) -> list[str]:
    """Medians and the range of the ratio within a round, as Markdown; then what a step is made of.

    The GEMM limit is measured once, so its share is of medians.
    """
    lines = [
        "| model | dtype | method | runner | tokens/s | graft's speed over it | its peak over graft's |",  # noqa: E501
        "|---|---|---|---|---|---|---|",
    ]
    parts = [
        "| model | dtype | method | s a step | share of the GEMM limit | Python, of which transformers' |",  # noqa: E501
        "|---|---|---|---|---|---|",
    ]
    for key, own in _by_combination(records).items():
        runners = dict.fromkeys(r["runner"] for r in own)
        for runner in [r for r in runners if r != "limit" and not r.startswith("python")]:
            rate = _median(own, runner, "tokens_per_second")
            speed = spread(ratios(own, "graft", runner, "tokens_per_second"))
            peak = spread(ratios(own, runner, "graft", "peak_bytes"))
            lines.append(f"| {' | '.join([*key, runner, f'{rate:.0f}', speed, peak])} |")
        if "graft" in runners:
            step = _median(own, "graft", "seconds_per_step")
            share = _median(own, "graft", "tokens_per_second") / _median(
                own, "limit", "tokens_per_second"
            )
            every, bare = (
                _median(own, runner, "seconds_per_step") / step
                for runner in ("python", "python-bare")
            )
            cells = [*key, f"{step:.2f}", f"{share:.0%}", f"{every:.1%}, {bare:.1%}"]
            parts.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *parts]


def _by_combination(records: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    out: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["model"], record["dtype"], record["method"])
        out.setdefault(key, []).append(record)
    return out


def _median(records: list[dict[str, Any]], runner: str, figure: str) -> float:
    return statistics.median(r[figure] for r in records if r["runner"] == runner)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """graft's speed over each runner: the median, and the range over rounds."""
    import matplotlib.pyplot as plt

    bars = []
    for key, own in _by_combination(records).items():
        for runner in dict.fromkeys(r["runner"] for r in own):
            if runner in ("graft", "limit") or runner.startswith("python"):
                continue
            found = ratios(own, "graft", runner, "tokens_per_second")
            if found:
                bars.append((f"{' '.join(key)}, {runner}", found))
    if not bars:
        return
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.3 * len(bars)), layout="constrained")
    for place, (_, found) in enumerate(bars):
        middle = statistics.median(found)
        error = [[middle - min(found)], [max(found) - middle]]
        axes.barh(place, middle, xerr=error, color="C0", ecolor="0.4", capsize=3)
        axes.text(0.05, place, f"{middle:.1f}", va="center", color="white")
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("graft's tokens/s over theirs, median and range of the rounds")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    if sys.argv[1:] == ["--job"]:
        print(json.dumps(measure(json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="smollm2", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--dtypes", default="bf16", help="bf16,fp32")
    methods = [method for method in METHODS if method != "lora-top"]
    parser.add_argument("--methods", default=",".join(methods), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--runners", default="graft,peft,peft-tuned")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--equal", action="store_true", help="rows of equal length")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rows", help="a data file, in place of random ids")
    parser.add_argument("--tokenizer", help="folder of the tokenizer for --rows")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="training", help="of the files that are written")
    Clock.add_to(parser, 14)
    arguments = parser.parse_args()
    records = compare(arguments)
    print("\n".join(table(records)))
    path = save(
        arguments.output,
        arguments.name,
        records,
        arguments={
            k: v for k, v in vars(arguments).items() if k not in ("output", "rows", "tokenizer")
        },
    )
    draw(records, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
