"""Training in graft against PEFT with transformers' Trainer, and TRL's SFTTrainer with packing.

    python benchmarks/training.py [--model smollm2] [--methods lora,prompt_tuning] [--rounds 5]

Base models have the shapes of known ones and random weights; rows have the lengths of
alpaca_en_demo (LLaMA-Factory), or come from `--rows FILE --tokenizer FOLDER`. Every measurement is
a process of its own; a round runs each runner once, one after the other, on the same rows in the
same order, so that what slows the machine slows all. Figures are ratios within a round.

Runners: `graft`; `graft-*` with one trick left out; `peft`, as a tutorial writes it; `peft-tuned`,
with glibc's allocator tuned; `trl`, with packing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": (
        "LlamaConfig",
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "tie_word_embeddings": True, "max_position_embeddings": 8192, "rope_theta": 1e5,
        },
    ),
    "qwen3": (
        "Qwen3Config",
        {
            "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40960,
        },
    ),
    "gpt2": ("GPT2Config", {}),
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 8, "target_modules": "all-linear"}),
    "lora-qv": ("LoraConfig", {"r": 8}),
    "ia3": ("IA3Config", {}),
    "bitfit": ("BitFitConfig", {}),
    "prompt_tuning": ("PromptTuningConfig", {"num_virtual_tokens": 20}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 20}),
    "prefix_tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 20}),
}
TARGETS = {  # PEFT has no table entry for some shapes
    ("smollm2", "lora-qv"): {"target_modules": ["q_proj", "v_proj"]},
    ("qwen3", "lora-qv"): {"target_modules": ["q_proj", "v_proj"]},
    ("gpt2", "lora-qv"): {"target_modules": ["c_attn"]},
    **{
        (shape, "ia3"): {
            "target_modules": ["k_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
        for shape in ("smollm2", "qwen3")
    },
    ("gpt2", "ia3"): {
        "target_modules": ["c_attn", "mlp.c_proj"],
        "feedforward_modules": ["mlp.c_proj"],
    },
}
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}
BATCH, WARM_UP = 8, 1
# Tokens of a row: the quantiles 0, 5 %, ..., 100 % of alpaca_en_demo under SmolLM2's tokenizer.
LENGTHS = [
    *(28, 38, 43, 48, 54, 62, 74, 92, 110, 130, 151),
    *(174, 202, 231, 264, 299, 330, 362, 405, 461, 705),
]


def make_rows(count: int, vocabulary: int, equal: bool) -> list[dict[str, list[int]]]:
    """Rows of random ids, of which the last 85 % are learned."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        place = rng.random() * (len(LENGTHS) - 1)
        low = int(place)
        length = round(LENGTHS[low] + (place - low) * (LENGTHS[low + 1] - LENGTHS[low]))
        length = 193 if equal else length
        ids = [rng.randrange(3, vocabulary) for _ in range(length)]
        prompt = round(0.15 * length)
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def read_rows(path: str, tokenizer: str, count: int) -> list[dict[str, list[int]]]:
    """The first rows of a file, as graft prepares them."""
    from transformers import AutoTokenizer

    from graft.config import TaskType
    from graft.data.config import DataConfig
    from graft.data.prepare import prepare_data

    own = AutoTokenizer.from_pretrained(tokenizer)
    data = prepare_data(DataConfig(train=path, max_rows=count), own, TaskType.CAUSAL_LM, 0)
    return [{key: list(row[key]) for key in ("input_ids", "labels")} for row in data.train]


# --- one measurement, in its own process ------------------------------------------------------


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train `job["steps"]` steps after the warm-up; tokens/s, peak memory, losses."""
    import torch

    torch.manual_seed(0)
    model = make_model(job["model"], job["dtype"], job["runner"])
    rows = job["rows"] or make_rows(
        BATCH * (job["steps"] + WARM_UP), model.config.vocab_size, job["equal"]
    )
    run = {"graft": with_graft, "peft": with_trainer, "trl": with_trl}[
        job["runner"].partition("-")[0]
    ]
    return run(job, model, rows)


def make_model(shape: str, dtype: str, runner: str) -> Any:
    import torch
    import transformers

    name, settings = SHAPES[shape]
    config = getattr(transformers, name)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Autocast is Trainer's `bf16=True`, over a model in fp32.
    return model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)


def with_graft(job: dict[str, Any], model: Any, rows: list[Any]) -> dict[str, Any]:
    import graft
    from graft.adapt.site import Site
    from graft.config import TaskType
    from graft.data.collate import Collator
    from graft.training import forward, loop
    from graft.training.config import TrainConfig
    from graft.training.report import Callback

    left_out = job["runner"].partition("-")[2]
    if left_out == "fusing":
        Site.fuses = False
    if left_out == "packing":
        loop.make_forward = lambda model, task: forward._Padded(model, "left out")
    adapted = graft.get_peft_model(model, adapter_config(graft, job))

    class Clock(Callback):
        def __init__(self) -> None:
            self.meter = Meter()

        def on_step(self, step: int) -> None:
            self.meter.step()

    class Pads:
        pad_token_id, eos_token_id = 0, 0

    clock = Clock()
    result = loop.fit(
        adapted,
        rows,
        None,
        Collator(Pads(), TaskType.CAUSAL_LM),
        TrainConfig(
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            logging_steps=1,
            gradient_checkpointing=job["checkpointing"],
        ),
        task_type=TaskType.CAUSAL_LM,
        callbacks=[clock],
    )
    losses = [record["loss"] for record in result.records if "loss" in record]
    return clock.meter.result(in_order(rows), losses)


def with_trainer(job: dict[str, Any], model: Any, rows: list[Any]) -> dict[str, Any]:
    import transformers

    adapted = with_peft(job, model)

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            import torch

            return torch.utils.data.SequentialSampler(rows_)

    rows_ = in_order(rows)
    return run_trainer(job, InOrder, adapted, rows_, padded)


def with_trl(job: dict[str, Any], model: Any, rows: list[Any]) -> dict[str, Any]:
    import tempfile

    import datasets
    import peft
    import trl

    meter = Meter()
    rows = in_order(rows)
    longest = BATCH * max(LENGTHS) // 4  # tokens of a packed row: about those of a batch
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
            peft_config=adapter_config(peft, job),
            callbacks=[trainer_clock(meter)],
        )
        packed = trainer.train_dataset
        trainer.train()
    tokens = [len(row["input_ids"]) for row in packed]
    found = meter.result([], [])
    seconds = meter.marks[-1] - meter.marks[WARM_UP - 1]
    # The order of the packed rows is TRL's own: their mean stands for each.
    share = (len(meter.marks) - WARM_UP) / len(meter.marks)
    return {**found, "tokens_per_second": sum(tokens) * share / seconds}


def with_peft(job: dict[str, Any], model: Any) -> Any:
    import peft

    return peft.get_peft_model(model, adapter_config(peft, job))


def run_trainer(
    job: dict[str, Any], trainer_class: Any, model: Any, rows: list[Any], collator: Any
) -> dict[str, Any]:
    import tempfile

    import transformers

    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            **trainer_settings(job, folder),
            per_device_train_batch_size=BATCH,
            disable_tqdm=True,
        )
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collator,
            callbacks=[trainer_clock(meter)],
        )
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return meter.result(rows, losses)


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

    def result(self, rows: list[Any], losses: list[float]) -> dict[str, Any]:
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM:"))
        counted = rows[BATCH * WARM_UP : BATCH * len(self.marks)]
        tokens = sum(len(row["input_ids"]) for row in counted)
        seconds = self.marks[-1] - self.marks[WARM_UP - 1]
        return {
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / (len(self.marks) - WARM_UP),
            "peak_bytes": int(peak.split()[1]) * 1024,
            "losses": losses,
        }


def in_order(rows: list[Any]) -> list[Any]:
    """The rows as graft's first epoch takes them."""
    from graft.training.batches import Order
    from graft.training.config import TrainConfig

    order = Order(len(rows), BATCH, TrainConfig().seed)
    return [rows[i] for step in range(order.steps_per_epoch) for i in order.step(step)]


def adapter_config(package: Any, job: dict[str, Any]) -> Any:
    """The config of the job's method, of graft's or of PEFT's class."""
    name, settings = METHODS[job["method"]]
    targets = TARGETS.get((job["model"], job["method"]), {})
    return getattr(package, name)(**{"task_type": "CAUSAL_LM", **settings, **targets})


def trainer_settings(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """What both of the peers' trainers are told."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": job["runner"].endswith("autocast"),
        "gradient_checkpointing": job["checkpointing"],
    }


# --- all of them ------------------------------------------------------------------------------


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own, with the allocator that the runner asks for."""
    tuned = TUNED if "tuned" in job["runner"] else {}
    done = subprocess.run(
        [sys.executable, __file__, "--job", "-"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, **tuned, "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job['runner']}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds of all methods; one record a measurement."""
    rows = []
    if arguments.rows:
        count = BATCH * (arguments.steps + WARM_UP)
        rows = read_rows(arguments.rows, arguments.tokenizer, count)
    records = []
    for method in arguments.methods.split(","):
        for number in range(arguments.rounds):
            for runner in arguments.runners.split(","):
                job = {
                    "runner": runner, "method": method, "model": arguments.model,
                    "dtype": arguments.dtype, "steps": arguments.steps, "rows": rows,
                    "equal": arguments.equal, "checkpointing": arguments.checkpointing,
                }  # fmt: skip
                found = run_job(job)
                job.pop("rows")
                records.append({**job, "round": number, **found})
                print(
                    f"{method} round {number} {runner}: {found['tokens_per_second']:.0f} tokens/s, "
                    f"{found['peak_bytes'] / 2**20:.0f} MiB",
                    file=sys.stderr,
                    flush=True,
                )
    return records


def table(records: list[dict[str, Any]], base: str = "graft") -> list[str]:
    """Medians and the range of the ratio within a round, as Markdown."""
    lines = [
        "| method | runner | tokens/s | graft's speed over it | its peak over graft's |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(record["method"] for record in records):
        own = {r["round"]: r for r in records if (r["method"], r["runner"]) == (method, base)}
        for runner in dict.fromkeys(record["runner"] for record in records):
            theirs = [r for r in records if (r["method"], r["runner"]) == (method, runner)]
            if not theirs:
                continue
            speed = [own[r["round"]]["tokens_per_second"] / r["tokens_per_second"] for r in theirs]
            peak = [r["peak_bytes"] / own[r["round"]]["peak_bytes"] for r in theirs]
            rate = statistics.median(r["tokens_per_second"] for r in theirs)
            lines.append(
                f"| {method} | {runner} | {rate:.0f} | {_spread(speed)} | {_spread(peak)} |"
            )
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--runners", default="graft,peft,peft-tuned")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--equal", action="store_true", help="rows of equal length")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rows", help="a data file, in place of random ids")
    parser.add_argument("--tokenizer", help="folder of the tokenizer for --rows")
    parser.add_argument("--output", help="JSON file for all measurements")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(json.load(sys.stdin))))
        return
    records = compare(arguments)
    print("\n".join(table(records)))
    if arguments.output:
        machine = {"processor": platform.processor(), "cores": os.cpu_count()}
        text = json.dumps({"machine": machine, "records": records}, indent=1)
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
