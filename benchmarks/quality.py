"""How good graft's adapters are beside PEFT's: same rows, order, steps, optimizer, learning rates.

    python benchmarks/quality.py --data FOLDER --minilm FOLDER [--out FOLDER] [--only demo,sst2]

Tasks: `shakespeare` (stories260K, from FOLDER/lm and FOLDER/text), `sst2` and `trec` (MiniLM, from
FOLDER/classify), `demo` (graft's bundled base and task; it needs no FOLDER). Each of the six
methods, and full fine-tuning, with three seeds in graft and in PEFT. Every tool makes its adapter
as it does by itself, so a seed stands for its own random start. PEFT is trained by a plain loop
over padded batches, graft by its own; both are judged by the same code on the same held-out rows.

A result that is there (`--out`/results/*.json) is not computed again, so it can be stopped and gone
on with. The table, `quality.md`, and `quality.json` are written anew after each result. On one core
everything takes about half an hour.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from graft.adapt import PeftModel
from graft.atomic import write_text
from graft.comparison.results import HIGHER_IS_BETTER
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
            48, 16,
            {
                "lora": 2e-3, "ia3": 1e-2, "bitfit": 3e-3, "prompt_tuning": 1e-2, "p_tuning": 3e-3,
                "prefix_tuning": 1e-2, "full": 1e-4,
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


def table(found: dict[str, Any], every: dict[str, Task]) -> str:
    """Markdown: a line for each task, measure and method; what is worse in bold."""
    lines = ["| task | measure | method | graft | PEFT | |", "|---|---|---|---|---|---|"]
    for name, task in every.items():
        for metric, method in itertools.product(task.metrics, METHODS):
            values = [
                [
                    found[key][metric]
                    for key in found
                    if key.startswith(f"{name}--{method}--{tool}--")
                ]
                for tool in TOOLS
            ]
            if not all(values):
                continue
            graft, peft = map(spread, values)
            verdict = "alike"
            if min(map(len, values)) < 2:
                verdict = "one seed: chance"
            elif better(graft, peft, metric in HIGHER_IS_BETTER):
                verdict = "graft is better"
            elif better(peft, graft, metric in HIGHER_IS_BETTER):
                verdict = "**graft is worse**"
            cells = [f"{s.mean:.4f} ({s.low:.4f} to {s.high:.4f})" for s in (graft, peft)]
            lines.append(f"| {name} | {metric} | {method} | {cells[0]} | {cells[1]} | {verdict} |")
    return "\n".join(lines) + "\n"


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
                    if key in found:
                        continue
                    found[key] = one_result(every[name], method, tool, seed)
                    line = json.dumps(found[key], allow_nan=False) + "\n"
                    write_text(given.out / "results" / f"{key}.json", line)
                    print(f"{key}: {line}", end="", flush=True)
                    _write(given.out, found, every)
    _write(given.out, found, every)
    print(table(found, every))


def _write(out: Path, found: dict[str, Any], every: dict[str, Task]) -> None:
    write_text(out / "quality.json", json.dumps(found, indent=2) + "\n")
    write_text(out / "quality.md", table(found, every))


if __name__ == "__main__":
    main()
