"""How good graft's adapters are beside PEFT's: same rows, order, steps, optimizer, learning rates.

    python benchmarks/quality.py --data FOLDER --minilm FOLDER [--out FOLDER] [--only demo,sst2]

Tasks: `shakespeare` (stories260K, from FOLDER/lm and FOLDER/text), `sst2` and `trec` (MiniLM, from
FOLDER/classify), `demo` (graft's bundled base and task; it needs no FOLDER) and `demo-whole` (the
same with the steps of `graft demo`). Each of the six methods, and full fine-tuning, with three
seeds in graft and in PEFT. Every tool makes its adapter as it does by itself, so a seed stands for
its own random start. PEFT is trained by a plain loop over padded batches, graft by its own; both
are judged by the same code on the same held-out rows.

A result that is there (`--out`/results/*.json) is not computed again, so it can be stopped and gone
on with. The table, `quality.md`, and `quality.json` are written anew after each result, the plot,
`quality.png`, at the end. On one core everything takes about an hour and a half.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from report import machine

from graft.adapt import PeftModel
from graft.atomic import write_text
from graft.comparison.results import HIGHER_IS_BETTER, Spread
from graft.comparison.spread import better, spread
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.demo import demo_model_path, heldout_rows, train_rows
from graft.demo.settings import SETTINGS as OF_DEMO
from graft.hub import load_model, load_tokenizer
from graft.methods import make_config
from graft.training.attachment import attach
from graft.training.batches import Order, make_batch, split
from graft.training.config import TrainConfig
from graft.training.evaluate import evaluate
from graft.training.learner import Run
from graft.training.loop import fit
from graft.training.optimizer import make_optimizer, make_schedule, trainable_parameters

METHODS = ("lora", "ia3", "bitfit", "prompt_tuning", "p_tuning", "prefix_tuning", "full")
TOOLS = ("graft", "peft")
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")
ALL_BIASES = "dummy-target-modules"  # PEFT's name of no target: only biases are left to train

# What PEFT's prefix hands over, `past_key_values`, is no argument of transformers' encoders.
REFUSED = {(TaskType.SEQ_CLS, "prefix_tuning", "peft")}


@dataclass(frozen=True)
class Task:
    """A base model with rows, and how each method learns them.

    Attributes:
        base: Folder of the base model.
        task_type: What the rows are for.
        data: Settings of `data:`.
        steps: Optimizer steps.
        rows: Rows in a step.
        rates: The highest learning rate, by method.
        metrics: What is compared.
        fields: More settings of a method's config.
        more_steps: Steps of methods that need another number of them.
    """

    base: str
    task_type: TaskType
    data: dict[str, Any]
    steps: int
    rows: int
    rates: dict[str, float]
    metrics: tuple[str, ...] = ("loss",)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    more_steps: dict[str, int] = field(default_factory=dict)

    def settings(self, method: str, seed: int) -> TrainConfig:
        return TrainConfig(
            per_device_train_batch_size=self.rows,
            per_device_eval_batch_size=32,
            max_steps=self.more_steps.get(method, self.steps),
            learning_rate=self.rates[method],
            warmup_ratio=0.05,
            logging_steps=1000,
            seed=seed,
            bf16=False,
        )


def tasks(data: Path | None, minilm: Path | None, out: Path) -> dict[str, Task]:
    """The tasks whose files are there."""
    found: dict[str, Task] = {}
    for name, rows in (("train", train_rows()), ("heldout", heldout_rows())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(out / f"demo-{name}.jsonl", lines)
    rates = {name: chosen.learning_rate for name, chosen in OF_DEMO.items()}
    found["demo"] = Task(
        str(demo_model_path()), TaskType.CAUSAL_LM,
        {"train": str(out / "demo-train.jsonl"), "eval": str(out / "demo-heldout.jsonl")},
        40, 16, {**rates, "full": 1e-3},
        fields={name: dict(chosen.fields) for name, chosen in OF_DEMO.items()},
        more_steps=dict.fromkeys(("prompt_tuning", "p_tuning"), 80),
    )  # fmt: skip
    found["demo-whole"] = replace(
        found["demo"], more_steps={name: chosen.steps for name, chosen in OF_DEMO.items()}
    )
    if data is None:
        return found
    text = (data / "text/tinyshakespeare.txt").read_text(encoding="utf-8")
    at = int(0.9 * len(text))
    write_text(out / "train.txt", text[:at])
    write_text(out / "heldout.txt", text[at : at + 40_000])
    found["shakespeare"] = Task(
        str(data / "lm/stories260K"), TaskType.CAUSAL_LM,
        {"train": str(out / "train.txt"), "eval": str(out / "heldout.txt"), "max_length": 128},
        100, 8,
        {
            "lora": 5e-3, "ia3": 5e-2, "bitfit": 1e-2, "prompt_tuning": 5e-2, "p_tuning": 1e-2,
            "prefix_tuning": 5e-2, "full": 1e-3,
        },
    )  # fmt: skip
    if minilm is None:
        return found
    heldout = {"sst2": ("en_sst2", "dev"), "trec": ("en_trec", "test")}
    for name, (folder, part) in heldout.items():
        place = data / "classify" / folder
        found[name] = Task(
            str(minilm), TaskType.SEQ_CLS,
            {
                "train": f"{place / 'train.jsonl'}#4000", "eval": f"{place / part}.jsonl#400",
                "max_length": 32,
            },
            100, 16,
            {
                "lora": 3e-3, "ia3": 2e-2, "bitfit": 5e-3, "prompt_tuning": 3e-2, "p_tuning": 1e-2,
                "prefix_tuning": 2e-2, "full": 1e-4,
            },
            ("accuracy", "loss"),
        )  # fmt: skip
    return found


def fields_of(task: Task, method: str) -> dict[str, Any]:
    """Settings of the adapter, the same in both tools."""
    own = {"num_virtual_tokens": 20} if method in PROMPTS else {}
    own |= {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} if method == "lora" else {}
    return own | task.fields.get(method, {})


@functools.cache
def prepared(base: str, data: str, task_type: TaskType) -> tuple[Any, Collator]:
    """Rows, and what makes batches of them."""
    tokenizer = load_tokenizer(base)
    rows = prepare_data(DataConfig(**json.loads(data)), tokenizer, task_type, 0)
    return rows, Collator(tokenizer, task_type)


def one_result(task: Task, method: str, tool: str, seed: int) -> dict[str, Any]:
    """Train and judge once."""
    rows, collate = prepared(task.base, json.dumps(task.data), task.task_type)
    set_seed(seed)
    base = load_model(task.base, task.task_type, label_names=rows.label_names)
    settings = task.settings(method, seed)
    start = time.perf_counter()
    if tool == "graft":
        model = with_graft(base, task, method, seed)
        fit(model, Run(rows.train, None, settings), collate, task_type=task.task_type)
    else:
        model = with_peft(base, task, method, seed)
        plain_loop(model, rows.train, collate, settings, task.task_type)
    seconds = time.perf_counter() - start
    model.eval()
    device = torch.device("cpu")
    found = evaluate(model, rows.eval, collate, task.task_type, 32, device)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**found, "trainable_parameters": learned, "seconds": seconds}


def with_graft(base: Any, task: Task, method: str, seed: int) -> PeftModel:
    """`base` with an adapter of graft's."""
    model = PeftModel(base)
    if method == "full":
        base.requires_grad_(True)
        return model
    config = make_config(method, task_type=task.task_type, **fields_of(task, method))
    attach(model, config, seed, "default")
    model.set_adapter("default")
    return model


def with_peft(base: Any, task: Task, method: str, seed: int) -> Any:
    """`base` with an adapter of PEFT's."""
    if method == "full":
        return base
    import peft

    set_seed(seed)
    fields = {**fields_of(task, method), "task_type": str(task.task_type)}
    if method == "p_tuning":  # without a size of its own, PEFT's encoder has that of the model
        fields["encoder_hidden_size"] = base.config.hidden_size
    if method == "ia3":  # what graft finds by the structure; PEFT has it in a table for known names
        fields |= of_ia3(base)
    if method == "bitfit":
        if any(name.endswith("bias") for name, _ in base.named_parameters()):
            config: Any = peft.LoraConfig(target_modules=ALL_BIASES, bias="all", **fields)
        else:
            fields["target_modules"] = ".*proj"
            config = peft.BeftConfig(**fields)
        return peft.get_peft_model(base, config)
    kinds = {
        "lora": peft.LoraConfig,
        "ia3": peft.IA3Config,
        "prompt_tuning": peft.PromptTuningConfig,
        "p_tuning": peft.PromptEncoderConfig,
        "prefix_tuning": peft.PrefixTuningConfig,
    }
    return peft.get_peft_model(base, kinds[method](**fields))


def of_ia3(base: Any) -> dict[str, list[str]]:
    """The layers that IA3 scales, by the names of the architecture."""
    if base.config.model_type == "llama":
        return {
            "target_modules": ["k_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
    return {
        "target_modules": ["key", "value", "output.dense"],
        "feedforward_modules": ["output.dense"],
    }


def plain_loop(
    model: Any, rows: Any, collate: Collator, settings: TrainConfig, task_type: TaskType
) -> None:
    """What a careful user of PEFT writes: padded batches, AdamW, clipping, a schedule."""
    parameters = trainable_parameters(model)
    order = Order(len(rows), settings.per_device_train_batch_size, settings.seed)
    assert settings.learning_rate is not None
    optimizer = make_optimizer(parameters, settings, settings.learning_rate)
    schedule = make_schedule(optimizer, settings, settings.max_steps)
    set_seed(settings.seed)
    model.train()
    for step in range(settings.max_steps):
        for piece in split(order.step(step), settings.per_device_train_batch_size):
            batch = make_batch([rows[i] for i in piece], collate, task_type)
            model(**batch.inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


_HEAD = ["| method | trained | rate | steps | graft | PEFT | |", "|---" * 7 + "|"]


def table(found: dict[str, Any], every: dict[str, Task]) -> str:
    """Markdown: for each task and measure a line for each method; what is worse in bold."""
    lines: list[str] = []
    for name, task in every.items():
        for metric in task.metrics:
            rows = [_row(found, name, task, metric, method) for method in METHODS]
            if any(rows):
                lines += ["", f"**{name}, {metric}**", "", *_HEAD, *filter(None, rows)]
    return "\n".join(lines[1:]) + "\n"


def _row(found: dict[str, Any], name: str, task: Task, metric: str, method: str) -> str | None:
    graft, peft = (of_tool(found, name, method, tool) for tool in TOOLS)
    if not graft:
        return None
    values = [[run[metric] for run in runs] for runs in (graft, peft)]
    if not peft:
        verdict = "PEFT refuses" if (task.task_type, method, "peft") in REFUSED else "not measured"
    elif min(map(len, values)) < 3:  # ranges of two lie apart by chance in every third case
        verdict = "too few seeds"
    else:
        verdict = _verdict(spread(values[0]), spread(values[1]), metric in HIGHER_IS_BETTER)
    settings = task.settings(method, 0)
    cells = [
        method, f"{graft[0]['trainable_parameters']:,}", f"{settings.learning_rate:g}",
        str(settings.max_steps), *map(_cell, values), verdict,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _verdict(graft: Spread, peft: Spread, higher_is_better: bool) -> str:
    if better(graft, peft, higher_is_better):
        return "graft is better"
    return "**graft is worse**" if better(peft, graft, higher_is_better) else "alike"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    found = spread(values)
    return f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f}; {len(values)})"


def of_tool(found: dict[str, Any], name: str, method: str, tool: str) -> list[dict[str, Any]]:
    """The results of all seeds."""
    return [run for key, run in found.items() if key.startswith(f"{name}--{method}--{tool}--")]


def plot(found: dict[str, Any], every: dict[str, Task], path: Path) -> None:
    """A panel for each task: mean and range of its first measure, graft beside PEFT."""
    import matplotlib.pyplot as plt

    shown = [name for name in every if any(key.startswith(f"{name}--") for key in found)]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(3.2 * len(shown), 4), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], shown, strict=True):
        metric = every[name].metrics[0]
        for shift, tool, colour in ((-0.14, "graft", "#1f77b4"), (0.14, "peft", "#d95f02")):
            for at, method in enumerate(METHODS):
                values = [run[metric] for run in of_tool(found, name, method, tool)]
                if values:
                    mean = sum(values) / len(values)
                    axis.plot([min(values), max(values)], [at + shift] * 2, color=colour, lw=2)
                    axis.plot(mean, at + shift, "o", color=colour, ms=5)
        axis.set_title(name)
        axis.set_xlabel(f"{metric}, {'more' if metric in HIGHER_IS_BETTER else 'less'} is better")
        if metric == "loss" and name.startswith("demo"):
            axis.set_xscale("log")
            axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(METHODS)), METHODS)
    axes[0][0].invert_yaxis()
    for colour, tool in (("#1f77b4", "graft"), ("#d95f02", "PEFT")):
        axes[0][-1].plot([], [], "o-", color=colour, label=tool)
    axes[0][-1].legend(loc="best")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality"))
    parser.add_argument("--only", default="", help="tasks, with commas")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    every = tasks(given.data, given.minilm, given.out)
    warnings.simplefilter("ignore")  # of PEFT and transformers about each other
    only = [name for name in given.only.split(",") if name] or list(every)
    found: dict[str, Any] = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((given.out / "results").glob("*.json"))
    }
    for seed in range(given.seeds):  # so that a first seed of all is there early
        for name in only:
            for method in given.methods.split(","):
                for tool in TOOLS:
                    key = f"{name}--{method}--{tool}--{seed}"
                    if key in found or (every[name].task_type, method, tool) in REFUSED:
                        continue
                    found[key] = one_result(every[name], method, tool, seed)
                    line = json.dumps(found[key], allow_nan=False) + "\n"
                    write_text(given.out / "results" / f"{key}.json", line)
                    print(f"{key}: {line}", end="", flush=True)
                    _write(given.out, found, every)
    _write(given.out, found, every)
    plot(found, every, given.out / "quality.png")
    print(table(found, every))


def _write(out: Path, found: dict[str, Any], every: dict[str, Task]) -> None:
    told = {"machine": machine(), "results": found}
    write_text(out / "quality.json", json.dumps(told, indent=1) + "\n")
    write_text(out / "quality.md", table(found, every))


if __name__ == "__main__":
    main()
