"""Adapters on a frozen base model: which there are, which act, which learn. Runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from graft.adapt import merge
from graft.adapt.adapter import Adapter, build_adapter
from graft.adapt.combine import combine
from graft.adapt.compose import Composer
from graft.adapt.layers import LayerView
from graft.adapt.parameters import ParameterView
from graft.adapt.routed import ParameterSite, SavedModule
from graft.adapt.routing import BASE, Router, each_once
from graft.adapt.site import Site
from graft.adapt.status import LayerStatus, ModelStatus, get_layer_status, get_model_status
from graft.config import PeftConfig
from graft.errors import ConfigError, MergeError, did_you_mean
from graft.methods import Combination

__all__ = ["AttachedAdapters"]


class AttachedAdapters(nn.Module):
    """A base model, its adapters by name, and where they act on it.

    Attributes:
        base_model: The base model, as it was given.
        adapters: The adapters by name; their parameters are the only ones that can learn.
        router: Which adapters act on which rows of the current forward.
        sites: The target layers with their adapters, by path.
        saved: The modules that adapters replace whole, by path.
        enabled: Whether adapters act at all; see `disable_adapter_layers`.
    """

    base_model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if isinstance(model, AttachedAdapters):
            raise ConfigError("This model has adapters already; use its add_adapter.")
        self.base_model = model.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.router = Router()
        self.sites: dict[str, Site | ParameterSite] = {}
        self.saved: dict[str, SavedModule] = {}
        self.enabled = True
        self._active: tuple[str, ...] = ()
        # The base model is not ours to save, and nothing is lost without it.
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_expect_no_base)
        self._composer: Composer | None = None

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig) -> None:
        """Attach one more adapter, of any method. It acts once it is active, or on its rows.

        Raises:
            ConfigError: A name that is taken or cannot be one, or a config that cannot work.
            TargetError: Targets that match nothing.
        """
        self._check_name(adapter_name)
        with self.unmerged():  # many an adapter starts from the weights
            self.attach(adapter_name, build_adapter(self.base_model, peft_config))

    def attach(self, name: str, adapter: Adapter) -> None:
        """Put an adapter that was built for this base model in place."""
        self._check_name(name)
        for path, layer_adapter in adapter.layers.items():
            view = adapter.views[path]
            if view.site_path not in self.sites:
                self.sites[view.site_path] = _new_site(view, self.router)
            self.sites[view.site_path].add(name, view, layer_adapter)
        for path, module in adapter.saved.items():
            if path not in self.saved:
                own = self.base_model.get_submodule(path)
                self.saved[path] = SavedModule(own, path, self.router)
            self.saved[path].copies[name] = module
        if adapter.virtual_tokens is not None and self._composer is None:
            self._composer = Composer(self.base_model)
        if "torch._dynamo" in sys.modules:  # compiled code does not see hooks added later
            torch.compiler.reset()
        adapter.train(self.training)
        if adapter.config.inference_mode:
            adapter.requires_grad_(False)
        self.adapters[name] = adapter

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name or "/" in name or name == BASE:
            raise ConfigError(
                f"{name!r} cannot be an adapter's name: no dots, no slashes, not {BASE!r}."
            )
        if name in self.adapters:
            raise ConfigError(f"There is an adapter {name!r} already; delete it first.")
        if hasattr(nn.ModuleDict, name):
            raise ConfigError(f"{name!r} cannot be an adapter's name: torch uses it. Try {name}_1.")

    def _require(self, names: str | Sequence[str]) -> tuple[str, ...]:
        wanted = (
            (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
        )
        for name in wanted:
            if name not in self.adapters:
                raise ConfigError(
                    f"There is no adapter {name!r}.{did_you_mean(name, self.adapters)}"
                )
        return wanted

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one or several adapters active, in the order in which they shall act.

        What learns is another question: see `set_requires_grad`.

        Args:
            adapter_name: A name, or several.
            inference_mode: Also stop them from learning.
        """
        self._active = each_once(self._require(adapter_name))
        if inference_mode:
            self.set_requires_grad(self._active, False)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Say whether the parameters of these adapters learn."""
        for name in self._require(adapter_names):
            self.adapters[name].requires_grad_(requires_grad)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> dict[str, float]:
        """Attach a new adapter that is a weighted combination of others (LoRA, IA3).

        Args:
            adapters: Their names; all of one method.
            weights: One number for each, of either sign.
            adapter_name: Name of the new adapter.
            combination_type: See `graft.methods.Combination`; so are the other arguments.
            svd_rank: Rank of the result; None: the largest of the ranks.
            density: Share of entries to keep.
            majority_sign_method: "total" or "frequency".

        Returns:
            The relative error of the update at each layer, `||D - B A|| / ||D||`; 0 where exact.

        Raises:
            ConfigError: A name that is taken, or adapters that cannot be combined.
        """
        self._check_name(adapter_name)
        how = Combination(combination_type, svd_rank, density, majority_sign_method)
        with self.unmerged():
            combined, errors = combine(self, self._require(adapters), weights, how)
            self.attach(adapter_name, combined)
        return errors

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; layers without any are the base model's own again."""
        self._require(adapter_name)
        if adapter_name in self.merged_adapters:
            raise MergeError(f"{adapter_name!r} is merged; call unmerge_adapter() first.")
        del self.adapters[adapter_name]
        for path, site in list(self.sites.items()):
            if site.adapters.pop(adapter_name, None) is not None and not site.adapters:
                site.detach()
                del self.sites[path]
        for path, saved in list(self.saved.items()):
            if saved.copies.pop(adapter_name, None) is not None and not saved.copies:
                saved.detach()
                del self.saved[path]
        self._active = tuple(name for name in self._active if name != adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model alone inside the block, merged adapters taken out; then as it was."""
        active, self._active = self._active, ()
        try:
            with self.unmerged():
                yield
        finally:  # without what was deleted inside
            self._active = tuple(name for name in active if name in self.adapters)

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """The base model's own weights inside the block; then what was merged is again."""
        merged = self.merged_adapters
        merge.unmerge(self)
        try:
            yield
        finally:
            merge.merge(self, [name for name in merged if name in self.adapters])

    def disable_adapter_layers(self) -> None:
        """The base model alone, until `enable_adapter_layers`.

        Raises:
            MergeError: If an adapter is merged, so that its weights are not the base model's.
        """
        for name in self.merged_adapters:
            raise MergeError(f"{name!r} is merged; call unmerge_adapter() first.")
        self.enabled = False

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act again."""
        self.enabled = True

    @property
    def acting(self) -> tuple[str, ...]:
        """Names of the adapters that act on rows which say nothing else."""
        return self._active if self.enabled else ()

    @property
    def active_adapters(self) -> list[str]:
        return list(self._active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapter's name, or a list where it is not one."""
        return self._active[0] if len(self._active) == 1 else list(self._active)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters folded into the base model's weights, in that order."""
        return list(dict.fromkeys(n for site in self.sites.values() for n in site.merged))

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The resolved config of every adapter (copies, not the ones that were given)."""
        return {name: self.adapter(name).config for name in self.adapters}

    @property
    def active_peft_config(self) -> PeftConfig:
        return self.adapter(self._one_active()).config

    @property
    def peft_type(self) -> str:
        return self.active_peft_config.peft_type

    def _one_active(self) -> str:
        if not self._active:
            raise ConfigError("No adapter is active; call set_adapter.")
        return self._active[0]

    @property
    def targeted_module_names(self) -> list[str]:
        """Paths of the base model's modules at which some adapter acts."""
        return list(self.sites)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable parameters and of all (base model and adapters)."""
        every = list(self.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line of trainable and all parameters."""
        trainable, every = self.get_nb_trainable_parameters()
        share = 100 * trainable / every
        print(
            f"trainable params: {trainable:,d} || all params: {every:,d} || trainable%: {share:.4f}"
        )

    def get_layer_status(self) -> list[LayerStatus]:
        """See `graft.adapt.status`."""
        return get_layer_status(self)

    def get_model_status(self) -> ModelStatus:
        """See `graft.adapt.status`."""
        return get_model_status(self)

    def adapter(self, name: str) -> Adapter:
        """The adapter called `name`."""
        return self.adapters[self._require(name)[0]]  # pyright: ignore[reportReturnType]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for site in self.sites.values():  # weights that merged ones stand in for go along
            for kept in site.kept_parameters():
                kept.data = fn(kept.data)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)


def _new_site(view: LayerView, router: Router) -> Site | ParameterSite:
    return ParameterSite(view, router) if isinstance(view, ParameterView) else Site(view, router)


def _without_base(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}base_model.")]:
        del state[key]


def _expect_no_base(module: nn.Module, incompatible: Any) -> None:
    kept = [key for key in incompatible.missing_keys if "base_model." not in key]
    incompatible.missing_keys[:] = kept
