"""From a config's `target_modules` to the layers it means; near misses are errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from graft.adapt.layers import LayerView, view_of
from graft.adapt.parameters import ParameterView
from graft.adapt.patterns import near_miss, read_pattern
from graft.adapt.structure import adaptable_layers, bare_parameters
from graft.errors import TargetError, did_you_mean
from graft.methods import LayerAdapter
from graft.methods.base import matches_suffix
from graft.methods.targeting import TargetedConfig

__all__ = ["Targets", "find_targets", "shortest_names"]


_LINEAR = ("linear", "conv1d")  # the kinds that "all-linear" means


@dataclass(frozen=True)
class Targets:
    """The layers that a config means.

    Attributes:
        layers: The target layers, in the order of the model.
        others: The layers beside them that could be adapted by some method.
        names: The fewest, shortest suffixes that match just the modules among `layers`.
        parameter_names: The same for bare parameters.
    """

    layers: list[LayerView]
    others: list[LayerView]
    names: list[str]
    parameter_names: list[str]


def find_targets(
    model: nn.Module,
    config: TargetedConfig,
    method: type[LayerAdapter],
    heads: Iterable[str] = (),
) -> Targets:
    """The layers of `model` that `config` targets.

    Args:
        model: The base model.
        config: Whose `target_modules`, `exclude_modules`, `layers_to_transform` are used.
        method: Which kinds of layers can be adapted, and the default roles.
        heads: Paths of modules that are trained whole; what lies in them is no target.

    Raises:
        TargetError: If a name, a pattern or a layer index matches nothing, or matches something
            that the method cannot adapt.
    """
    heads = list(heads)
    every = adaptable_layers(model)
    views = {
        path: view
        for path, view in every.items()
        if view.kind in method.kinds and not _inside(path, heads)
    }
    chosen = _chosen(model, config, method, views)
    chosen = _without_excluded(model, config, chosen)
    chosen = _in_layers(config, chosen)
    parameters = _parameters(model, config, method)
    views = {**views, **parameters}
    layers = [views[path] for path in [*chosen, *parameters]]
    _nest(layers)
    paths = [path for path, _ in model.named_modules()]
    names = shortest_names(dict.fromkeys(views[path].target_path for path in chosen), paths)
    others = [v for p, v in every.items() if p not in chosen and not _inside(p, heads)]
    _check_token_names(config, others)
    every_parameter = [path for path, _ in model.named_parameters()]
    return Targets(layers, others, names, shortest_names(parameters, every_parameter))


def _parameters(
    model: nn.Module, config: TargetedConfig, method: type[LayerAdapter]
) -> dict[str, ParameterView]:
    """The bare parameters that the config means."""
    wanted = getattr(config, "target_parameters", None)
    everything = config.target_modules == "all-linear"
    if "experts" not in method.kinds or not (wanted or everything):
        return {}
    bare = bare_parameters(model)
    if not wanted:  # all-linear: experts are linear layers, kept as one parameter
        return {p: v for p, v in bare.items() if v.kind == "experts" and "expert" in p.lower()}
    for name in wanted:
        if not any(matches_suffix(path, [name]) for path in bare):
            hint = did_you_mean(name, {".".join(path.split(".")[-2:]) for path in bare})
            raise TargetError(f"target_parameters: {name!r} matches no bare parameter.{hint}")
    return {path: view for path, view in bare.items() if matches_suffix(path, wanted)}


def _nest(layers: Iterable[LayerView]) -> None:
    """Number the parameters of one module as PEFT nests its wrappers: the first lies deepest."""
    by_module: dict[str, list[ParameterView]] = {}
    for view in layers:
        if isinstance(view, ParameterView) and not view.is_attention:
            by_module.setdefault(view.site_path, []).append(view)
    for views in by_module.values():
        for depth, view in enumerate(reversed(views)):
            view.depth = depth


def _check_token_names(config: TargetedConfig, others: Iterable[LayerView]) -> None:
    wanted = getattr(config, "trainable_token_indices", None)
    embeddings = {view.path: view for view in others if view.kind == "embedding"}
    if isinstance(wanted, dict):
        for name in wanted:
            if not any(matches_suffix(path, [name]) for path in embeddings):
                hint = did_you_mean(name, {path.rpartition(".")[2] for path in embeddings})
                raise TargetError(
                    f"trainable_token_indices: {name!r} matches no embedding that is free for "
                    f"it (neither a target nor saved whole).{hint}"
                )
    elif wanted and not any(view.role == "embedding" for view in embeddings.values()):
        raise TargetError(
            "trainable_token_indices: the input embedding is a target or saved whole already."
        )


def _chosen(
    model: nn.Module,
    config: TargetedConfig,
    method: type[LayerAdapter],
    views: Mapping[str, LayerView],
) -> list[str]:
    wanted = config.target_modules
    if wanted is None and getattr(config, "target_parameters", None):
        return []  # as in PEFT: the parameters alone
    if isinstance(wanted, list):
        for name in wanted:
            _check_name(model, name, views, method)
        return [p for p, view in views.items() if matches_suffix(view.target_path, wanted)]
    if wanted == "all-linear":
        head = _output_embeddings(model)
        return _need(
            [p for p, v in views.items() if v.kind in _LINEAR and v.module is not head],
            "target_modules='all-linear' found no linear layer in this model.",
        )
    if wanted is not None:
        pattern = read_pattern("target_modules", wanted)
        found = [p for p, view in views.items() if pattern.fullmatch(view.target_path)]
        return found or _need([], _no_whole_path(pattern, [v.target_path for v in views.values()]))
    return _by_role(model, method, views)


def _by_role(
    model: nn.Module, method: type[LayerAdapter], views: Mapping[str, LayerView]
) -> list[str]:
    if not method.default_roles:  # biases: those that are there, else new ones on linear layers
        biased = [path for path, view in views.items() if view.bias is not None]
        head = _output_embeddings(model)
        linear = [p for p, v in views.items() if v.kind in _LINEAR and v.module is not head]
        found = biased or linear
    else:
        found = [path for path, view in views.items() if view.role in method.default_roles]
    names = ", ".join(sorted({path.rpartition(".")[2] for path in views})[:12])
    return _need(
        found,
        f"No layer of {type(model).__name__} looks like a "
        f"{' or '.join(sorted(method.default_roles))} projection; say target_modules, such as "
        f"all-linear. Its layers are called {names}.",
    )


def _no_whole_path(pattern: re.Pattern[str], paths: Sequence[str]) -> str:
    """Why the `target_modules` in `pattern` find nothing, and what to write."""
    text = pattern.pattern
    is_name = any(matches_suffix(path, [text]) for path in paths)
    as_list = f" Or, for a name, give a list: [{text!r}]." if is_name else ""
    return f"target_modules={text!r} is a string, so it {near_miss(pattern, paths)}{as_list}"


def _need(found: list[str], message: str) -> list[str]:
    if not found:
        raise TargetError(message)
    return found


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _check_name(
    model: nn.Module, name: str, views: Mapping[str, LayerView], method: type[LayerAdapter]
) -> None:
    hit = [(p, m) for p, m in model.named_modules() if matches_suffix(p, [name])]
    known = {view.target_path for view in views.values()}
    strange = next(((p, m) for p, m in hit if p not in known), None)
    if hit and strange is None:
        return
    valid = {path.rpartition(".")[2] for path in known}
    if not hit:
        hint = did_you_mean(name, valid)
        raise TargetError(f"target_modules: {name!r} matches no layer of the model.{hint}")
    if any(path in known for path, _ in hit):
        return  # such as a head that is trained whole, beside layers of the same name
    path, module = strange or hit[0]
    view = view_of(module, path)
    if view is not None and view.kind in method.kinds:
        raise TargetError(
            f"target_modules: {name!r} matches {path!r}, which is trained whole as it is; "
            "leave it out."
        )
    kinds = ", ".join(sorted(method.kinds))
    raise TargetError(
        f"target_modules: {name!r} matches {path!r}, a {type(module).__name__}; "
        f"{method.__name__} adapts {kinds}.{did_you_mean(name, valid)}"
    )


def _without_excluded(model: nn.Module, config: TargetedConfig, chosen: list[str]) -> list[str]:
    exclude = config.exclude_modules
    if exclude is None:
        return chosen
    paths = [path for path, _ in model.named_modules()]
    if isinstance(exclude, str):
        pattern = read_pattern("exclude_modules", exclude)
        found = {exclude: [path for path in paths if pattern.fullmatch(path)]}
    else:
        found = {name: [path for path in paths if matches_suffix(path, [name])] for name in exclude}
    for name, hit in found.items():
        if not hit:
            hint = did_you_mean(name, {path.rpartition(".")[2] for path in chosen})
            raise TargetError(f"exclude_modules: {name!r} matches no module.{hint}")
    out = {path for hit in found.values() for path in hit}
    kept = [path for path in chosen if path not in out]
    return _need(kept, f"exclude_modules={exclude!r} leaves no target.")


def _in_layers(config: TargetedConfig, chosen: list[str]) -> list[str]:
    if config.layers_to_transform is None:
        return chosen
    asked = config.layers_to_transform
    wanted = [asked] if isinstance(asked, int) else list(asked)
    lists = config.layers_pattern
    names = [lists] if isinstance(lists, str) else lists
    prefix = "|".join(map(re.escape, names)) if names else r"[^.]+"
    pattern = re.compile(rf"(?:^|.*?\.)(?:{prefix})\.(\d+)\.")
    index = {path: int(m.group(1)) for path in chosen if (m := pattern.match(path))}
    if not index:
        raise TargetError(f"layers_pattern={lists!r} is in no path such as {chosen[0]!r}.")
    missing = sorted(set(wanted) - set(index.values()))
    if missing:
        low, high = min(index.values()), max(index.values())
        raise TargetError(
            f"layers_to_transform: no layer {missing}; the targets are in {low} to {high}."
        )
    return [path for path in chosen if index.get(path) in wanted]


def _inside(path: str, modules: Iterable[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def shortest_names(chosen: Iterable[str], every: Iterable[str]) -> list[str]:
    """The shortest suffixes that match all of `chosen` and nothing else of `every`."""
    chosen = list(chosen)
    others = {suffix for path in set(every) - set(chosen) for suffix in _suffixes(path)}
    names = [next((n for n in _suffixes(path) if n not in others), path) for path in chosen]
    return list(dict.fromkeys(names))


def _suffixes(path: str) -> list[str]:
    """What `path` ends with at a dot, the shortest first."""
    parts = path.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
