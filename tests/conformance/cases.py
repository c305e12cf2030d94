"""The methods as the suite runs them: each entry of `METHODS`, its variants, and a seventh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graft.config import PeftConfig, TaskType
from graft.methods import (
    METHODS,
    LayerAdapter,
    Lora,
    PrefixAdapter,
    PrefixTuning,
    PTuning,
    VirtualTokens,
)

from .families import Family
from .toy import Gain

__all__ = ["BASE", "CASES", "Case"]

BASE = "__base__"  # the name for rows that no adapter acts on


@dataclass(frozen=True)
class Case:
    """A method, with the settings that make it the variant under test.

    Attributes:
        method: The class in `METHODS`.
        settings: Fields of its config that are not left at their defaults.
    """

    method: type[LayerAdapter] | type[VirtualTokens]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Also the name that `attach` gives the adapter."""
        return "_".join([self.method.__name__, *(str(v).lower() for v in self.settings.values())])

    @property
    def at_layers(self) -> bool:
        """Whether it acts at layers, and not by virtual tokens."""
        return issubclass(self.method, LayerAdapter)

    def is_refused(self, family: Family, task: TaskType) -> bool:
        """Whether the method cannot work there, which is an error when it is attached."""
        return issubclass(self.method, PrefixAdapter) and task in family.no_cache

    def config(self, family: Family, **values: Any) -> PeftConfig:
        """The plainest config of this variant."""
        needed = {} if self.at_layers else {"num_virtual_tokens": 3}
        values = {"task_type": family.task, **needed, **self.settings, **values}
        return self.method.config_class(**values)


CASES = [
    *(Case(method) for method in METHODS.values()),
    Case(Gain),
    Case(Lora, {"use_dora": True}),
    Case(Lora, {"target_modules": "all-linear"}),  # experts too
    Case(PTuning, {"encoder_reparameterization_type": "LSTM"}),
    Case(PrefixTuning, {"prefix_projection": True}),
]
