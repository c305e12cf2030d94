"""The model of a setting without its numbers, and with no more layers than it takes.

It is built whole on the meta device, adapters attached as training attaches them. Of layers that
repeat, three periods stay: the first, one that stands for all in between, and the last. Then every
tensor becomes a fake one: it says it is on a CPU, and holds no memory.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.adapt import PeftModel
from graft.config import PeftConfig, TaskType
from graft.errors import PlanError
from graft.hub import make_skeleton
from graft.planning.quantised import quantise
from graft.planning.setting import Setting

__all__ = ["Layer", "Skeleton", "make_fake", "make_model"]

_NUMBERED = re.compile(r"idx|index|layer_id")  # what a layer says of its own place


@dataclass(frozen=True)
class Layer:
    """A layer that is run, and those that it stands for.

    Attributes:
        stack: Name of its stack: "" where there is one.
        index: Its number from 0, in the whole model.
        depth: Layers of the whole stack.
        times: How many layers it stands for.
        period: Layers from it to the next one that it stands for.
    """

    stack: str
    index: int
    depth: int
    times: int = 1
    period: int = 0

    def named(self, repeat: int = 0) -> str:
        """In words, counted from 1."""
        name = f"{self.stack} layer" if self.stack else "layer"
        return f"{name} {self.index + 1 + repeat * self.period} of {self.depth}"


@dataclass(frozen=True)
class Skeleton:
    """A model to trace.

    Attributes:
        model: With its adapters.
        layers: The layers that it runs, by module.
        last: Of these the one behind which the head is; None where there are none.
        owners: The layer that a parameter or buffer belongs to, by its id; others are not in it.
        parameters: Numbers in the base model and the adapters, all layers counted.
        trainable: Those that are trained.
    """

    model: PeftModel
    layers: dict[nn.Module, Layer]
    last: nn.Module | None
    owners: dict[int, Layer]
    parameters: int
    trainable: int


def make_model(setting: Setting) -> PeftModel:
    """The whole model of `setting` on the meta device.

    Raises:
        GraftError: A config that describes no model, or an adapter that it cannot have.
    """
    config = copy.deepcopy(setting.config)
    _require_sizes(config)
    if setting.num_labels is not None:
        config.num_labels = setting.num_labels
    if setting.task_type is TaskType.SEQ_CLS and config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = 0  # as `hub.load_model` sees to
    base = make_skeleton(config, setting.task_type, _name(config), setting.dtype)
    if setting.quantised is not None:
        if not setting.adapters:
            raise PlanError(
                f"A base model of {setting.quantised} bits cannot be trained whole; plan an "
                "adapter on it, or a base model in bfloat16."
            )
        quantise(base, setting.task_type, setting.quantised)
    model = PeftModel(base)
    for name, given in setting.adapters.items():
        model.add_adapter(name, _unstarted(given, setting.task_type))
    if setting.adapters:
        model.set_requires_grad(list(setting.adapters))
        model.set_adapter(next(iter(setting.adapters)))
    else:
        base.requires_grad_(True)
    return model


def _name(config: PreTrainedConfig) -> str:
    return config.name_or_path or f"the config of a {config.model_type}"


def _require_sizes(config: PreTrainedConfig) -> None:
    own = config.get_text_config()
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        value = getattr(own, name, None)
        if not isinstance(value, int) or value < 1:
            raise PlanError(
                f"{_name(config)} gives {value!r} as {name}; a plan needs the sizes of the model."
            )


def _unstarted(given: PeftConfig, task_type: TaskType) -> PeftConfig:
    """The config without what virtual tokens start from, which costs a forward pass."""
    changes: dict[str, Any] = {"task_type": task_type}
    if given.is_prompt_learning:
        changes["inference_mode"] = True
    return given.changed(**changes)


def make_fake(model: PeftModel, fake: FakeTensorMode, exact: bool) -> Skeleton:
    """Leave out layers of `model` that others stand for, and make all its tensors fake.

    Args:
        model: On the meta device; changed.
        fake: The mode that the tensors are of.
        exact: Leave out no layer.
    """
    every = list(model.parameters())
    total = sum(p.numel() for p in every)
    trainable = sum(p.numel() for p in every if p.requires_grad)
    kept: dict[nn.Module, Layer] = {}
    owned: dict[int, Layer] = {}
    stacks = list(_stacks(model.base_model))
    for path, layers in stacks:
        name = "" if len(stacks) == 1 else _stack_name(path)
        adapters = [_of_adapters(model, f"{path}.{index}") for index in range(len(layers))]
        stands_for = [Layer(name, index, len(layers)) for index in range(len(layers))]
        if not exact:
            signs = zip(layers, adapters, _of_config(model.base_model, len(layers)), strict=True)
            stands_for = _thinned(stands_for, [hash(_signature(*each)) for each in signs])
        for index in reversed(range(len(layers))):
            layer, stays = layers[index], stands_for[index]
            if not stays.times:
                del layers[index]
                for tree, _ in adapters[index]:
                    tree._modules.pop(str(index))
                continue
            kept[layer] = stays
            own = [layer, *(part for _, part in adapters[index])]
            owned |= {id(t): stays for part in own for t in _tensors(part)}
    made = _replaced(model, fake)
    owners = {id(made[key]): layer for key, layer in owned.items()}
    last = stacks[-1][1][-1] if stacks else None
    return Skeleton(model, kept, last, owners, total, trainable)


def _stacks(base: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for path, module in base.named_modules():
        layers = list(module) if isinstance(module, nn.ModuleList) else []
        if layers and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
            yield path, module  # pyright: ignore


def _stack_name(path: str) -> str:
    return next((part for part in path.split(".") if part in ("encoder", "decoder")), path)


def _of_adapters(model: PeftModel, path: str) -> list[tuple[nn.Module, nn.Module]]:
    """What adapters have at the layer `path`: where it hangs in each one's tree, and itself."""
    parent, _, name = path.rpartition(".")
    found = []
    for adapter in model.adapters.values():
        tree: Any = adapter
        for part in ("tree", *parent.split(".")):
            tree = tree._modules.get(part, nn.Module())
        if name in tree._modules:
            found.append((tree, tree._modules[name]))
    return found


def _of_config(base: Any, depth: int) -> list[tuple[Any, ...]]:
    """What the config says of each layer."""
    values = vars(base.config.get_text_config()).values()
    lists = [v for v in values if isinstance(v, list | tuple) and len(v) == depth]
    return [tuple(map(str, each)) for each in zip(*lists, strict=True)] or [()] * depth


def _signature(
    layer: nn.Module, adapters: Sequence[tuple[nn.Module, nn.Module]], said: tuple[Any, ...]
) -> tuple[Any, ...]:
    """What layers that cost the same have in common."""
    out: list[Any] = [said]
    for part in (layer, *(own for _, own in adapters)):
        for path, module in part.named_modules():
            flags = {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and not _NUMBERED.search(name)
            }
            out.append((path, type(module), *sorted(flags.items())))
        for name, tensor in part.named_parameters():
            out.append((name, tensor.shape, tensor.dtype, tensor.requires_grad))
    return tuple(out)


def _thinned(layers: list[Layer], signs: Sequence[int]) -> list[Layer]:
    """The layers with how many each stands for: 0 where another one stands for it."""
    start, period, count = _longest_run(signs)
    for index in range(start + period, start + (count - 1) * period):
        own = layers[index]
        times = count - 2 if index < start + 2 * period else 0
        layers[index] = Layer(own.stack, index, own.depth, times, period)
    return layers


def _longest_run(signs: Sequence[int]) -> tuple[int, int, int]:
    """Start, period and number of the periods that leave out most when three of them stay."""
    best, saved = (0, 1, 0), 0
    for period in range(1, len(signs) // 4 + 1):
        start = 0
        for index in range(period, len(signs) + 1):
            if index < len(signs) and signs[index] == signs[index - period]:
                continue
            count = (index - start) // period
            if (count - 3) * period > saved:
                best, saved = (start, period, count), (count - 3) * period
            start = index - period + 1
    return best


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _replaced(model: nn.Module, fake: FakeTensorMode) -> dict[int, Tensor]:
    """Replace all tensors in the modules of `model`, ties kept; the new ones by id of the old."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones stay, so that ids stay theirs

    def replaced(old: Tensor) -> Tensor:
        if id(old) not in made:
            made[id(old)] = old, _fake(old, fake)
        return made[id(old)][1]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, value in list(tensors.items()):
                if isinstance(value, Tensor):
                    tensors[name] = replaced(value)  # pyright: ignore
    return {key: new for key, (_, new) in made.items()}


def _fake(old: Tensor, fake: FakeTensorMode) -> Tensor:
    if not old.is_floating_point():  # counted and looked up, so there are numbers in it
        return torch.zeros(old.shape, dtype=old.dtype)
    with fake:
        new = torch.empty(old.shape, dtype=old.dtype)
        is_parameter = isinstance(old, nn.Parameter)
        return nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
