"""What `graft plan` says of a step against what the step takes: bytes at the peak, and seconds.

    python benchmarks/plan_accuracy.py [--quick] [--only TEXT] [--out FOLDER]

Each setting is two processes of its own, which train some steps by graft's own loop on a model with
random weights; one then plans the same from the config. Measured are the allocator's peak (torch's
profiler: every block that is taken and given back), the peak of what is resident beyond what was so
before there was a model, and the median time of a step. Resident memory is measured twice: where
each block goes back to the system at once, and as glibc leaves it, with the holes in its heap.
Beside it stands what accelerate's `estimate-memory` says, which knows no method and no batch.

Timings want an idle machine: nothing else may run, and nothing was tuned to these settings.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import save

SEED = 0
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's options of mallopt
MIXED = (17, 120, 64, 31, 90, 45, 200, 73)  # tokens of the rows of a batch
WARM_UP, TIMED = 3, 7  # steps; one more is watched by the profiler
PRELOADED = [
    "__main__", "torch", "transformers", "accelerate", "graft", "graft.training.loop",
    "graft.planning.step", "graft.planning.timing", "accelerate.commands.estimate",
    *(f"transformers.models.{name}.modeling_{name}"
      for name in ("llama", "qwen3", "gemma2", "gpt2", "bert", "t5")),
]  # fmt: skip

# Name of the config's class, its sizes, the task.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": (
        "LlamaConfig",
        {"vocab_size": 8000, "hidden_size": 256, "intermediate_size": 688,
         "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
         "pad_token_id": 0},
        "CAUSAL_LM",
    ),
    "qwen3": (
        "Qwen3Config",
        {"vocab_size": 12000, "hidden_size": 256, "intermediate_size": 768, "head_dim": 64,
         "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
         "tie_word_embeddings": True, "pad_token_id": 0},
        "CAUSAL_LM",
    ),
    "gemma2": (
        "Gemma2Config",
        {"vocab_size": 10000, "hidden_size": 192, "intermediate_size": 768, "head_dim": 32,
         "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 3,
         "sliding_window": 64, "query_pre_attn_scalar": 32},
        "CAUSAL_LM",
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 8000, "n_embd": 256, "n_layer": 6, "n_head": 8, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0},
        "CAUSAL_LM",
    ),
    "bert": (
        "BertConfig",
        {"vocab_size": 8000, "hidden_size": 256, "intermediate_size": 1024,
         "num_hidden_layers": 6, "num_attention_heads": 8, "num_labels": 3},
        "SEQ_CLS",
    ),
    "t5": (
        "T5Config",
        {"vocab_size": 8000, "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 4,
         "num_heads": 8, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"},
        "SEQ_2_SEQ_LM",
    ),
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8},
    "ia3": {},
    "bitfit": {},
    "prompt_tuning": {"num_virtual_tokens": 20},
    "p_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 20},
}
LORA, LINEAR = ("lora", {"r": 8}), ("lora", {"r": 8, "target_modules": "all-linear"})


@dataclass(frozen=True)
class Case:
    """A setting.

    Attributes:
        name: Of it.
        architecture: Of `ARCHITECTURES`.
        adapters: Method and fields by name; none: full fine-tuning.
        rows: Tokens of each row of an adapter's step.
        passes: Batches that these rows are split into; they are then of one length, as each step
            splits them anew.
        dtype: `fp32` or `bf16`.
        checkpointing: Whether activations are computed again.
        quick: Whether it is one of the few.
    """

    name: str
    architecture: str
    adapters: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    rows: Sequence[int] = MIXED
    passes: int = 1
    dtype: str = "fp32"
    checkpointing: bool = False
    quick: bool = False


def cases() -> list[Case]:
    """All settings."""
    made = [
        Case(f"{architecture} {method}", architecture, {"a": (method, fields)},
             quick=(architecture, method) in {("llama", "lora"), ("qwen3", "ia3"),
                                              ("gpt2", "prefix_tuning"), ("bert", "bitfit")})
        for architecture in ARCHITECTURES
        for method, fields in METHODS.items()
    ]  # fmt: skip
    made += [Case(f"{name} full", name, quick=name == "gemma2") for name in ARCHITECTURES]
    made += [
        Case(f"{name} lora bf16", name, {"a": LORA}, dtype="bf16", quick=name == "t5")
        for name in ARCHITECTURES
    ]
    made += [
        Case("llama full bf16", "llama", dtype="bf16"),
        Case("qwen3 prompt_tuning bf16", "qwen3",
             {"a": ("prompt_tuning", METHODS["prompt_tuning"])}, dtype="bf16"),
        Case("llama full, checkpointing", "llama", checkpointing=True),
        Case("qwen3 lora bf16, checkpointing", "qwen3", {"a": LORA}, dtype="bf16",
             checkpointing=True, quick=True),
        *(Case(f"{name} {method}, checkpointing", name, {"a": (method, METHODS[method])},
               checkpointing=True, quick=(name, method) == ("llama", "lora"))
          for name, method in (("llama", "lora"), ("llama", "ia3"), ("llama", "prefix_tuning"),
                               ("gpt2", "lora"), ("bert", "lora"), ("t5", "lora"))),
        Case("llama lora r=1", "llama", {"a": ("lora", {"r": 1})}),
        Case("llama lora r=64", "llama", {"a": ("lora", {"r": 64})}),
        Case("llama lora all-linear", "llama", {"a": LINEAR}, quick=True),
        Case("gemma2 lora all-linear r=32", "gemma2",
             {"a": ("lora", {"r": 32, "target_modules": "all-linear"})}),
        Case("llama lora, equal rows", "llama", {"a": LORA}, rows=(96,) * 8),
        Case("llama lora, a long row", "llama", {"a": LORA}, rows=(700, 20, 30, 40)),
        Case("qwen3 lora, short rows", "qwen3", {"a": LORA}, rows=(24, 11, 9, 31, 16, 20) * 4),
        Case("bert lora, a long row", "bert", {"a": LORA}, rows=(300, 20, 30, 40)),
        Case("llama lora, 2 passes", "llama", {"a": LORA}, rows=(96,) * 8, passes=2),
        Case("gpt2 full, 2 passes", "gpt2", rows=(96,) * 8, passes=2),
        Case("llama, two lora together", "llama", {"a": LORA, "b": LINEAR}, rows=MIXED[:4],
             quick=True),
        Case("llama, six methods together", "llama",
             {name: (name, fields) for name, fields in METHODS.items()}, rows=(64, 31, 17),
             quick=True),
        Case("qwen3, three methods together, bf16", "qwen3",
             {name: (name, METHODS[name]) for name in ("lora", "ia3", "prefix_tuning")},
             rows=MIXED[:4], dtype="bf16"),
        Case("bert, two lora together", "bert", {"a": LORA, "b": LINEAR}, rows=MIXED[:4]),
    ]  # fmt: skip
    return made


# --- one setting, in a process of its own -----------------------------------------------------


def measure_memory(case: Case) -> dict[str, Any]:
    """Bytes of a step, where a block that is given back is no longer resident."""
    libc = ctypes.CDLL(None)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        libc.mallopt(option, 2**16)
    found = measure(case, timed=1)
    return {name: found[name] for name in ("allocated_bytes", "resident_bytes")}


def measure_time(case: Case) -> dict[str, Any]:
    """Seconds of a step, and what is planned for it."""
    found = measure(case, TIMED)
    found["held_bytes"] = found.pop("resident_bytes")
    return {**found, **plan(case), "accelerate_bytes": estimate(case)}


def measure(case: Case, timed: int) -> dict[str, Any]:
    """Bytes and seconds of a step of `case`."""
    train(case, 1, tiny=True)  # what is loaded and made once is there before the base is taken
    return train(case, timed)


def train(case: Case, timed: int, tiny: bool = False) -> dict[str, Any]:
    """Some steps by graft's loop, of which `timed` count; bytes and seconds of one."""
    import torch

    from graft.adapt import PeftModel
    from graft.config import TaskType
    from graft.data.collate import Collator
    from graft.training.config import TrainConfig
    from graft.training.learner import Run
    from graft.training.loop import fit
    from graft.training.memory import resident_bytes

    torch.manual_seed(SEED)
    give_back()
    before = resident_bytes()
    model = PeftModel(make_base(case, tiny))
    for name, config in peft_configs(case).items():
        model.add_adapter(name, config)
    model.set_requires_grad(list(case.adapters))
    if not case.adapters:
        model.base_model.requires_grad_(True)
    settings = TrainConfig(
        per_device_train_batch_size=len(case.rows) // case.passes,
        gradient_accumulation_steps=case.passes,
        gradient_checkpointing=case.checkpointing,
        learning_rate=1e-4,
        logging_steps=1000,
        max_steps=WARM_UP + timed + 1,
    )
    run = Run(make_rows(case, model.base_model.config), settings=settings)
    task = TaskType(ARCHITECTURES[case.architecture][2])
    watch = make_watch(model, timed)
    fit(
        model,
        dict.fromkeys(case.adapters, run) if case.adapters else run,
        Collator(Pads(), task),  # pyright: ignore[reportArgumentType]
        task_type=task,
        callbacks=[watch],
    )
    times = watch.times
    return {
        "allocated_bytes": watch.static + watch.passing,
        "resident_bytes": watch.resident - before,
        "seconds": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
    }


def give_back() -> None:
    """Let the system have what is free in this process, where its allocator can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def make_watch(model: Any, timed: int) -> Any:
    """A callback that measures the steps behind the warm-up."""
    import torch

    from graft.training.memory import peak_memory_gib, reset_peak_memory
    from graft.training.report import Callback

    cpu = torch.device("cpu")

    class Watch(Callback):
        """Times, the resident peak over the timed steps, and the blocks of the last step."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.resident = self.static = self.passing = 0
            self._seen = -1
            self._mark = 0.0

        def of(self, adapter: str | None) -> Callback:
            return self  # together: all adapters step at once

        def on_step(self, step: int) -> None:
            if step == self._seen:
                return
            self._seen = step
            now = time.perf_counter()
            if step > WARM_UP:
                self.times.append(now - self._mark)
            if step == WARM_UP:
                reset_peak_memory(cpu)
            if step == WARM_UP + timed:
                self.resident = round((peak_memory_gib(cpu) or 0) * 2**30)
                self.static = static_bytes(model)
                kinds = [torch.profiler.ProfilerActivity.CPU]
                self._profile = torch.profiler.profile(activities=kinds, profile_memory=True)
                self._profile.__enter__()
            if step == WARM_UP + timed + 1:
                self._profile.__exit__(None, None, None)
                self.times.pop()  # the profiler's
                self.passing = highest(self._profile)
            self._mark = time.perf_counter()

    return Watch()


def static_bytes(model: Any) -> int:
    """Bytes of the model, and of AdamW's two moments."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    learned = [p for p in model.parameters() if p.requires_grad]
    # Two moments, and a step count of 4 bytes.
    return sum(storages.values()) + sum(2 * p.nbytes + 4 for p in learned)


def highest(profile: Any) -> int:
    """Most bytes that were taken and not given back yet."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def plan(case: Case) -> dict[str, Any]:
    """What graft plans for `case` from its config."""
    import torch

    from graft.config import TaskType
    from graft.planning.device import this_device
    from graft.planning.setting import Setting
    from graft.planning.step import trace_step
    from graft.planning.timing import step_time

    start = time.perf_counter()
    config, task = make_config(case, tiny=False), ARCHITECTURES[case.architecture][2]
    setting = Setting(
        config=config,
        task_type=TaskType(task),
        batches=planned_batches(case),
        adapters=peft_configs(case),
        dtype=torch.bfloat16 if case.dtype == "bf16" else torch.float32,
        gradient_checkpointing=case.checkpointing,
    )
    trace = trace_step(setting)
    traced = time.perf_counter() - start
    memory = trace.memory
    passing = memory.peak - memory.weights - memory.adapter - memory.optimizer
    planned = step_time(trace.operations, this_device(), setting.tokens, passing)
    assert planned is not None
    return {
        "planned_bytes": memory.peak,
        "peak_at": memory.where,
        "packed": trace.packed,
        "planned_seconds": planned.seconds,
        "planned_low": planned.low,
        "planned_high": planned.high,
        "trace_seconds": traced,
        "plan_seconds": time.perf_counter() - start,
    }


def planned_batches(case: Case) -> tuple[tuple[Any, ...], ...]:
    """The passes of a step as training fills them."""
    from graft.planning.setting import Row
    from graft.training.batches import Order
    from graft.training.config import TrainConfig
    from graft.training.passes import fill_passes, token_budget

    task = ARCHITECTURES[case.architecture][2]
    order = Order(len(case.rows), len(case.rows), TrainConfig().seed).step(0)
    due = {}
    for name in case.adapters or (None,):
        rows = [Row(case.rows[i], labels_of(case.rows[i], task), name) for i in order]
        each = len(rows) // case.passes
        due[name] = [tuple(rows[at : at + each]) for at in range(0, len(rows), each)]

    def size(pieces: Sequence[Any]) -> int:
        return sum(row.tokens for rows in pieces for row in rows)

    budget = token_budget(None, max(size([p]) for pieces in due.values() for p in pieces), "cpu")
    return tuple(
        tuple(row for rows in pieces for row in rows) for pieces in fill_passes(due, size, budget)
    )


def labels_of(tokens: int, task: str) -> int:
    """Tokens of a row that are learned."""
    return {"CAUSAL_LM": tokens - 1, "SEQ_CLS": 1, "SEQ_2_SEQ_LM": max(1, tokens // 2)}[task]


def estimate(case: Case) -> int:
    """What accelerate's `estimate-memory` says of training by Adam, from the config in hand."""
    import torch
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from transformers import AutoModel

    with init_empty_weights():
        model = AutoModel.from_config(make_config(case, tiny=False), dtype=torch.float32)
    size, _ = calculate_maximum_sizes(model)
    dtype = "float16" if case.dtype == "bf16" else "float32"  # the command knows no bfloat16
    return max(estimate_training_usage(size, dtype).values())


# --- what a setting is made of ----------------------------------------------------------------


class Pads:
    """What a collator asks of a tokenizer."""

    pad_token_id, eos_token_id = 0, 0


def make_config(case: Case, tiny: bool) -> Any:
    import transformers

    name, sizes, _ = ARCHITECTURES[case.architecture]
    if tiny:
        layers = {"num_hidden_layers", "n_layer", "num_layers"}
        sizes = {key: 2 if key in layers else value for key, value in sizes.items()}
        sizes["vocab_size"] = 100
    return getattr(transformers, name)(**sizes)


def make_base(case: Case, tiny: bool) -> Any:
    import torch
    import transformers

    task = ARCHITECTURES[case.architecture][2]
    kind = {
        "CAUSAL_LM": "AutoModelForCausalLM",
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    }[task]
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    return getattr(transformers, kind).from_config(make_config(case, tiny), dtype=dtype)


def peft_configs(case: Case) -> dict[str, Any]:
    from graft import methods

    task = ARCHITECTURES[case.architecture][2]
    return {
        name: methods.make_config(method, task_type=task, **fields)
        for name, (method, fields) in case.adapters.items()
    }


def make_rows(case: Case, config: Any) -> list[dict[str, Any]]:
    """Rows of random ids."""
    rng = random.Random(SEED)
    task = ARCHITECTURES[case.architecture][2]

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, config.vocab_size) for _ in range(count)]

    rows = []
    for tokens in case.rows:
        row: dict[str, Any] = {"input_ids": ids(tokens)}
        if case.architecture == "bert":
            row["token_type_ids"] = [0] * tokens
        if task == "SEQ_CLS":
            row["labels"] = rng.randrange(3)
        elif task == "SEQ_2_SEQ_LM":
            row["labels"] = ids(labels_of(tokens, task))
        else:
            row["labels"] = row["input_ids"]
        rows.append(row)
    return rows


# --- all of them ------------------------------------------------------------------------------


def run(chosen: Sequence[Case]) -> list[dict[str, Any]]:
    """Measure each case in a process that does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    records = []
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for number, case in enumerate(chosen, start=1):
            start = time.monotonic()
            found = about(case)
            try:
                for task in (measure_memory, measure_time):
                    found |= pool.submit(task, case).result()
            except Exception as error:
                found["failed"] = f"{type(error).__name__}: {error}"
            records.append(found)
            took = time.monotonic() - start
            print(f"{number}/{len(chosen)} {line(found)}  [{took:.0f} s]", flush=True)
    return records


def about(case: Case) -> dict[str, Any]:
    """What a setting is, in its record."""
    methods = [method for method, _ in case.adapters.values()]
    return {
        "name": case.name,
        "architecture": case.architecture,
        "method": "+".join(methods) or "full",
        "dtype": case.dtype,
        "gradient_checkpointing": case.checkpointing,
        "rows": list(case.rows),
        "passes": case.passes,
    }


def error(record: dict[str, Any], planned: str, measured: str) -> float:
    """Planned over measured, less 1."""
    return record[planned] / record[measured] - 1


ERRORS = {  # what is told of each setting: planned and measured
    "peak": ("planned_bytes", "allocated_bytes"),
    "resident": ("planned_bytes", "resident_bytes"),
    "held": ("planned_bytes", "held_bytes"),
    "accelerate": ("accelerate_bytes", "allocated_bytes"),
    "time": ("planned_seconds", "seconds"),
}


def line(record: dict[str, Any]) -> str:
    """A setting's errors, to look at while it runs."""
    if "failed" in record:
        return f"{record['name']}: {record['failed']}"
    errors = "  ".join(f"{name} {error(record, *keys):+.1%}" for name, keys in ERRORS.items())
    took = f"{record['allocated_bytes'] / 2**20:.1f} MiB, {record['seconds'] * 1e3:.0f} ms"
    return f"{record['name']}: {took}: {errors}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """The errors as Markdown: the worst and the median first, then each setting."""
    good = [record for record in records if "failed" not in record]
    within = [r for r in good if r["planned_low"] <= r["seconds"] <= r["planned_high"]]
    lines = [
        f"{len(good)} settings; planned over measured, less 1. The time was in the planned range "
        f"in {len(within)} of them.",
        "",
        "| | median of the error's size | largest | lowest | highest |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "peak": "peak, against the allocator's",
        "resident": "peak, against the resident one where blocks go back at once",
        "held": "peak, against the resident one with glibc's holes",
        "accelerate": "accelerate's estimate, against the allocator's peak",
        "time": "seconds of a step",
    }
    for name, keys in ERRORS.items():
        errors = [error(record, *keys) for record in good]
        sizes = [abs(each) for each in errors]
        lines.append(
            f"| {titles[name]} | {statistics.median(sizes):.2%} | {max(sizes):.2%} | "
            f"{min(errors):+.2%} | {max(errors):+.2%} |"
        )
    lines += [
        "",
        "| setting | peak (MiB) | planned | resident | held | accelerate | step (ms) | planned | "
        "range (ms) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in good:
        peak, resident, held, other, seconds = (error(record, *keys) for keys in ERRORS.values())
        low, high = record["planned_low"] * 1e3, record["planned_high"] * 1e3
        lines.append(
            f"| {record['name']} | {record['allocated_bytes'] / 2**20:.1f} | {peak:+.2%} | "
            f"{resident:+.1%} | {held:+.0%} | {other:+.0%} | {record['seconds'] * 1e3:.1f} | "
            f"{seconds:+.0%} | {low:.0f} to {high:.0f} |"
        )
    failed = [f"- {line(record)}" for record in records if "failed" in record]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Planned against measured, bytes on the left and seconds on the right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    good = [record for record in records if "failed" not in record]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    bytes_, seconds = figure.subplots(1, 2)
    peaks = [record["allocated_bytes"] / 2**20 for record in good]
    others = [record["accelerate_bytes"] / 2**20 for record in good]
    planned = [record["planned_bytes"] / 2**20 for record in good]
    bytes_.plot(peaks, others, "x", color="tab:gray", label="accelerate's estimate-memory")
    bytes_.plot(peaks, planned, "o", color="tab:blue", markersize=4, label="graft plan")
    times = [record["seconds"] * 1e3 for record in good]
    middle = [record["planned_seconds"] * 1e3 for record in good]
    reach = [
        [(r["planned_seconds"] - r["planned_low"]) * 1e3 for r in good],
        [(r["planned_high"] - r["planned_seconds"]) * 1e3 for r in good],
    ]
    seconds.errorbar(
        times, middle, reach, fmt="o", color="tab:blue", markersize=4, elinewidth=0.8,
        label="graft plan, with its range",
    )  # fmt: skip
    for axes, what in ((bytes_, "peak memory (MiB)"), (seconds, "time of a step (ms)")):
        low, high = min(axes.dataLim.min), max(axes.dataLim.max)
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="as measured")
        axes.set(xscale="log", yscale="log", xlabel=f"measured {what}", ylabel=f"planned {what}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Planned and measured steps, {len(good)} settings")
    figure.savefig(path, dpi=150)


def main() -> int:
    """Measure, print the table, write it and all else to the folder of results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a dozen settings")
    parser.add_argument("--only", default="", help="settings with this in their name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    chosen = [
        case for case in cases()
        if options.only in case.name and (case.quick or not options.quick)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GRAFT_CACHE"] = cache  # no timings and no runs of before
        records = run(chosen)
    told = table(records)
    print(told)
    save(options.out, "plan_accuracy", records, warm_up=WARM_UP, timed=TIMED)
    (options.out / "plan_accuracy.md").write_text(told, encoding="utf-8")
    draw(records, options.out / "plan_accuracy.png")
    return any("failed" in record for record in records)


if __name__ == "__main__":
    sys.exit(main())
