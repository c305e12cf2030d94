"""A LoRA run of LLaMA-Factory or axolotl -> a run file, and what could not be carried over.

What each setting means is the tables' of `dialects`; here it is put together, with what the other
tool does where a setting is left out. Nothing is dropped in silence: every setting of the file is
in `carried`, `equal` or `lost`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from graft.config import PeftType
from graft.data.config import DataConfig
from graft.errors import ConfigError
from graft.training.adapters import settings_model
from graft.training.config import RunConfig, Schedule, TrainConfig
from graft.training.dialects import ADAPTER, CONVERTED, TOOLS, Here, explain, shown, tool_of
from graft.training.reading import parse_yaml, read_settings
from graft.training.runfile import parse_run_config

__all__ = ["Conversion", "convert"]

_NAME = "assistant"
_OWN = settings_model(PeftType.LORA).model_fields


@dataclass
class Conversion:
    """What a file of another tool came to.

    Attributes:
        path: The file.
        tool: Whose it is.
        settings: Dotted path -> value, of the run file.
        carried: Their setting -> ours.
        equal: Their setting -> why nothing has to be set.
        lost: Their setting -> what is not carried over, or not the same here, and what to do.
        assumed: What the file leaves out and the other tool would do, by our dotted path.
    """

    path: str
    tool: str
    settings: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, list[str]] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)

    def raw(self) -> dict[str, Any]:
        """The settings of the run file."""
        merged = {**self.assumed, **self.settings}
        out: dict[str, Any] = {name: {} for name in RunConfig.model_fields}
        for path in sorted(merged, key=_place):
            *sections, leaf = path.replace(ADAPTER, f"adapters.{_NAME}").split(".")
            here = out
            for section in sections:
                here = here.setdefault(section, {})
            here[leaf] = merged[path]
        return {name: value for name, value in out.items() if value != {}}

    def text(self) -> str:
        """The run file."""
        lines = [f"# Made of {Path(self.path).name}, a file of {self.tool}, by `graft convert`."]
        if self.lost:
            lines.append("# Not carried over, or not the same here:")
        for names, why in self.reasons():
            text = f"{', '.join(names)}: {why}"
            lines += textwrap.wrap(text, 96, initial_indent="# - ", subsequent_indent="#   ")
        body = yaml.safe_dump(self.raw(), sort_keys=False, allow_unicode=True)
        return "\n".join(lines) + "\n" + body

    def set_by_default(self) -> list[str]:
        """`name: value` of what is only assumed."""
        return [
            f"{path.rpartition('.')[2]}: {shown(value)}"
            for path, value in self.assumed.items()
            if path not in self.settings
        ]

    def reasons(self) -> list[tuple[list[str], str]]:
        """What is lost, settings with the same reason together."""
        groups: dict[str, list[str]] = {}
        for name, why in self.lost.items():
            groups.setdefault(why, []).append(name)
        return [(names, why) for why, names in groups.items()]


_ORDER = [
    *RunConfig.model_fields,
    *(f"{ADAPTER}.{name}" for name in ("method", *_OWN)),
    *(f"data.{name}" for name in DataConfig.model_fields),
    *(f"train.{name}" for name in TrainConfig.model_fields),
]


def _place(path: str) -> int:
    return _ORDER.index(path)


def convert(path: str | Path) -> Conversion:
    """Read a YAML file of LLaMA-Factory or axolotl that trains by LoRA.

    A quantised base model (QLoRA) is carried over as LoRA, and the quantisation listed as lost.

    Raises:
        ConfigError: A file of neither tool, or one that does something else.
    """
    raw = {str(name): value for name, value in read_settings(path, "file").items()}
    tool = tool_of(raw)
    if raw.keys() & {"adapters", "data", "train"}:
        raise ConfigError(f"{path} is a run file already.")
    if tool not in CONVERTED:
        whose = f"is a file of {tool}" if tool else "is of no tool that graft knows"
        raise ConfigError(f"{path} {whose}; graft converts files of {' and '.join(CONVERTED)}.")
    done = Conversion(str(path), tool)
    if tool == "axolotl":
        _refuse_axolotl(raw, str(path))
    else:
        _refuse_llama_factory(raw, str(path))
    for name, value in raw.items():
        _take(done, name, value)
    done.settings["task_type"] = "CAUSAL_LM"
    done.settings[f"{ADAPTER}.method"] = "lora"
    (_settle_axolotl if tool == "axolotl" else _settle_llama_factory)(done, raw)
    _settle(done, raw)
    parse_run_config(done.raw())
    return done


def _take(done: Conversion, name: str, value: Any) -> None:
    here = _meaning(done.tool, name, value)
    done.settings |= here.settings
    if here.settings:
        done.carried[name] = list(here.settings)
    if here.lost:
        done.lost[_setting(name, value)] = here.lost
    elif not here.settings:
        done.equal[name] = here.equal


def _meaning(tool: str, name: str, value: Any) -> Here:
    for rules in (TOOLS[tool], _SAME, TOOLS["transformers"]):
        if name in rules:
            return explain(rules[name], value)
    if value is None:
        return Here(equal="it is not set")
    return Here(lost=f"graft does not know this setting of {tool}.")


def _same(path: str) -> Any:
    def rule(value: Any) -> Here:
        if value is None:
            return Here(equal="it is not set")
        if isinstance(value, str):  # as people write 2e-5, which other loaders take for text
            value = parse_yaml(value, path)
        if path == "train.lr_scheduler_type" and value not in get_args(Schedule):
            return Here(lost="graft has no such schedule; it is `linear` unless you choose one.")
        return Here({path: value})

    return rule


# Names that mean the same in graft.
_SAME = {
    "base_model": lambda value: Here({"base_model": value}),
    **{name: _same(f"train.{name}") for name in TrainConfig.model_fields},
    **{name: _same(f"{ADAPTER}.{name}") for name in _OWN},
}


def _setting(name: str, value: Any) -> str:
    """`name: value` where the value is short and no secret."""
    if isinstance(value, dict | list) or re.search(r"token|key|secret", name):
        return name
    text = shown(value)
    return f"{name}: {text}" if len(text) < 40 else name


def _refuse_llama_factory(raw: Mapping[str, Any], path: str) -> None:
    kind, stage = raw.get("finetuning_type", "lora"), raw.get("stage", "sft")
    if "export_dir" in raw:
        raise ConfigError(f"{path} merges an adapter; that is `graft merge ADAPTER FOLDER` here.")
    if kind != "lora":
        raise ConfigError(f"{path} has `finetuning_type: {kind}`; graft converts runs of LoRA.")
    if stage not in ("sft", "pt"):
        raise ConfigError(
            f"{path} has `stage: {stage}`; graft learns from answers (sft) and texts (pt) only."
        )
    if not raw.get("dataset"):
        raise ConfigError(f"{path} names no data to train on (`dataset`).")


def _refuse_axolotl(raw: Mapping[str, Any], path: str) -> None:
    kind = raw.get("adapter")
    if kind is None:
        raise ConfigError(f"{path} trains the whole model (no `adapter`); graft trains adapters.")
    if kind not in ("lora", "qlora"):
        raise ConfigError(f"{path} has `adapter: {kind}`; graft converts runs of LoRA.")
    for name in ("rl", "reward_model", "process_reward_model"):
        if raw.get(name):
            raise ConfigError(
                f"{path} has `{name}: {raw[name]}`; graft learns from answers and texts only."
            )
    if not raw.get("datasets") and not raw.get("pretraining_dataset"):
        raise ConfigError(f"{path} names no data to train on (`datasets`).")


def _settle_llama_factory(done: Conversion, raw: Mapping[str, Any]) -> None:
    ours = done.settings
    rank = ours.get(f"{ADAPTER}.r")
    done.assumed = {
        f"{ADAPTER}.r": 8,
        f"{ADAPTER}.lora_alpha": 2 * (rank if isinstance(rank, int) else 8),
        f"{ADAPTER}.target_modules": "all-linear",
        "data.dataset_dir": "data",
        "data.max_length": 2048,
        "train.learning_rate": 5e-5,
        "train.num_train_epochs": 3.0,
        "train.gradient_checkpointing": True,
        "train.output_dir": "trainer_output",
    }
    if raw.get("pissa_init"):
        rounds = raw.get("pissa_iter", 16)
        start = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
        ours[f"{ADAPTER}.init_lora_weights"] = start
    folder = str(ours.get("data.dataset_dir", "data"))
    if not (Path(folder) / "dataset_info.json").is_file():
        done.lost[f"dataset_dir: {folder}"] = (
            f"there is no {folder}/dataset_info.json here: take LLaMA-Factory's `data` folder "
            "along, or write files in place of names into `data.train`."
        )


def _settle_axolotl(done: Conversion, raw: Mapping[str, Any]) -> None:
    ours = done.settings
    done.assumed = {
        "data.max_length": 512,
        "train.per_device_train_batch_size": 1,
        "train.lr_scheduler_type": "cosine",
        "train.output_dir": "./model-out",
    }
    if raw.get("warmup_steps") is None and raw.get("warmup_ratio") is None:
        done.assumed["train.warmup_ratio"] = 0.03
    if raw.get("cosine_min_lr_ratio") is not None:
        ours["train.lr_scheduler_type"] = "cosine_with_min_lr"
    scheduler = ours.get("train.lr_scheduler_type")
    if scheduler is not None and scheduler not in get_args(Schedule):
        del ours["train.lr_scheduler_type"], done.carried["lr_scheduler"]
        done.lost[f"lr_scheduler: {scheduler}"] = "graft has no such schedule; it is `cosine` here."
    targets = f"{ADAPTER}.target_modules"
    if raw.get("lora_target_linear"):
        ours[targets] = "all-linear"
        if raw.get("lora_target_modules"):
            del done.carried["lora_target_modules"]
            done.lost["lora_target_modules"] = "`all-linear` takes every linear layer already."
    size, each = raw.get("batch_size"), ours.get("train.per_device_train_batch_size", 1)
    both = isinstance(size, int) and isinstance(each, int)
    if both and size and not raw.get("gradient_accumulation_steps") and size % each == 0:
        ours["train.gradient_accumulation_steps"] = size // each
        done.carried["batch_size"] = ["train.gradient_accumulation_steps"]
        done.lost.pop(f"batch_size: {size}", None)


def _settle(done: Conversion, raw: Mapping[str, Any]) -> None:
    """What transformers makes of settings that go together."""
    ours = done.settings
    steps = ours.get("train.warmup_steps")
    if isinstance(steps, float) and 0 < steps < 1:  # a share, in transformers 5
        del ours["train.warmup_steps"]
        ours["train.warmup_ratio"] = steps
        done.carried["warmup_steps"] = ["train.warmup_ratio"]
    elif steps and ours.pop("train.warmup_ratio", None):
        done.carried.pop("warmup_ratio")
        done.lost["warmup_ratio"] = "`warmup_steps` comes first there too."
    for what in ("eval", "save"):
        by_epoch = raw.get(f"{what}_strategy") == "epoch"
        if by_epoch and ours.pop(f"train.{what}_steps", None) is not None:
            done.carried.pop(f"{what}_steps")
            done.equal[f"{what}_steps"] = f"`{what}_strategy: epoch` comes first"
    if raw.get("eval_strategy") == "steps" and "train.eval_steps" not in ours:
        done.assumed["train.eval_steps"] = ours.get("train.logging_steps", 500)
