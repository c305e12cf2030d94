"""The settings that an adapter of each method may have, as pydantic knows them.

Made from the dataclass of the method's config, so that types are checked, and told to editors, in
the one place where they are declared.
"""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from functools import cache
from inspect import cleandoc
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from graft.config import PeftConfig, PeftType, as_enum
from graft.methods import METHODS
from graft.training.reading import parse_yaml

__all__ = ["kind_of", "methods_with", "setting_value", "settings_model"]

# Said elsewhere in a run file, or filled in when the adapter is attached.
_FILLED_IN = {
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "fan_in_fan_out",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "new_biases",
}


_REQUIRED = {"num_virtual_tokens": int}  # the dataclass has None, to say so in words of its own


def kind_of(method: Any) -> PeftType | None:
    """The method that a run file calls `method`; None where there is none."""
    kind = str(method).upper().replace("-", "_")
    return PeftType(kind) if kind in PeftType.__members__ else None


def methods_with(setting: str) -> list[str]:
    """The methods, as in run files, that have a setting of this name."""
    return [kind.lower() for kind in METHODS if setting in settings_model(kind).model_fields]


def setting_value(method: str, name: str, text: str) -> Any:
    """What the command line's `name=text` means for a method.

    Names or numbers with commas between them are a list where the setting is one. A regular
    expression for such a setting is one that has more than letters, digits and dots.

    Raises:
        ConfigError: `text` is no YAML.
    """
    kind = kind_of(method)
    listed = False
    if kind is not None and re.fullmatch(r"[\w.]+(,[\w.]+)*", text):
        types = {f.name: str(f.type) for f in dataclasses.fields(METHODS[kind].config_class)}
        listed = "list[" in types.get(name, "")
    place = f"The value of `{name}`"
    if listed:
        return [parse_yaml(word, place) for word in text.split(",")]
    return parse_yaml(text, place)


@cache
def settings_model(kind: PeftType) -> type[BaseModel]:
    """A model of the settings of one method, beside `method` and `learning_rate`."""
    config_class = METHODS[kind].config_class
    hints, described = get_type_hints(config_class), _descriptions(config_class)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.name in _FILLED_IN:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in _REQUIRED:
            default = ...
        hint = _REQUIRED.get(field.name, hints[field.name])
        if isinstance(hint, type) and issubclass(hint, Enum):
            hint = Annotated[hint, BeforeValidator(_reader(hint, field.name))]
        made[field.name] = (hint, Field(default=default, description=described.get(field.name)))
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(kind.lower(), __config__=config, **made)


def _reader(kind: type[Enum], name: str) -> Any:
    return lambda value: as_enum(kind, value, name)


def _descriptions(config_class: type[PeftConfig]) -> dict[str, str]:
    """What the `Attributes:` in the docstrings of the config and its bases say of each field."""
    found: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        _, _, listed = cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        listed = listed.partition("\n\n")[0]
        for entry in re.split(r"\n(?= {4}\w)", f"\n{listed}"):
            name, colon, text = entry.partition(":")
            if colon:
                found[name.strip()] = " ".join(text.split())
    return found
