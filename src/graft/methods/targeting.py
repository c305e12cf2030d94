"""The config fields by which a method that acts at layers says where."""

from __future__ import annotations

from dataclasses import dataclass

from graft.config import PeftConfig
from graft.errors import ConfigError

__all__ = ["TargetedConfig"]


@dataclass(kw_only=True)
class TargetedConfig(PeftConfig):
    """Fields that choose target layers, with PEFT's meaning.

    Attributes:
        target_modules: Suffixes of module paths (`["q_proj", "v_proj"]`), a regular expression
            that the whole path must match, `"all-linear"` (every linear layer but the output
            head), or None: chosen from the structure of the model.
        exclude_modules: Suffixes or a regular expression; what they match is left alone.
        layers_to_transform: Index or indices of the layers to adapt; None adapts all.
        layers_pattern: Name of the list of layers (`"layers"`, `"h"`), for `layers_to_transform`.
        fan_in_fan_out: Whether weights are stored [I, O], as Conv1D does; found out by itself and
            written for PEFT.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, set | tuple | frozenset):
                value = sorted(value)
                setattr(self, name, value)
            names = value if isinstance(value, list) else []
            is_known = value is None or isinstance(value, str | list)
            if not is_known or not all(isinstance(each, str) for each in names):
                raise ConfigError(f"{name} must be a list of names or a pattern, not {value!r}.")
            if value in ("", []) and not getattr(self, "target_parameters", None):
                raise ConfigError(f"{name} is empty; leave it out, or name layers.")
        if self.layers_to_transform == []:  # to PEFT, the same as None
            self.layers_to_transform = None
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ConfigError("layers_pattern without layers_to_transform has no effect.")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ConfigError(
                "layers_to_transform needs target_modules as a list of names; "
                f"with the pattern {self.target_modules!r}, put the layer indices into the pattern."
            )
