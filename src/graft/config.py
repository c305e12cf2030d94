"""What every adapter config shares: the enums, checking of fields, JSON in PEFT's format.

One subclass per method lives beside the method (`graft.methods`). A config is data: nothing here
touches a model, and nothing anywhere changes a config that the user made.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

from graft.atomic import write_text
from graft.download import CONFIG_NAME, adapter_folder
from graft.errors import CheckpointError, ConfigError, did_you_mean

__all__ = ["CONFIG_NAME", "PeftConfig", "PeftType", "TaskType", "as_enum"]


class PeftType(StrEnum):
    """The methods, by the names PEFT gives them on disk (BITFIT is graft's own)."""

    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    LORA = "LORA"
    IA3 = "IA3"
    BITFIT = "BITFIT"


class TaskType(StrEnum):
    """What the base model is for; decides the head and how labels are extended."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


def as_enum(kind: type[Enum], value: Any, field: str) -> Any:
    """`value` as a member of `kind`, or a ConfigError that names `field` and the valid values."""
    if isinstance(value, kind):
        return value
    for member in kind:
        if str(value).upper() == str(member.value).upper():
            return member
    valid = [str(member.value) for member in kind]
    raise ConfigError(f"{field}={value!r} is not known.{did_you_mean(str(value), valid)}")


@dataclass(kw_only=True)
class PeftConfig:
    """The fields that all methods share.

    Attributes:
        task_type: What the base model is for; a `TaskType` or its name.
        base_model_name_or_path: Hub id or folder of the base model; filled in when attached.
        revision: Revision of the base model on its hub.
        inference_mode: True for an adapter that is loaded only to be used.
        modules_to_save: Names of modules (suffixes) trained and saved whole beside the adapter.
        peft_version: Version of the library that wrote the file.
        auto_mapping: Class and module of a base model without a task type.

    Raises:
        ConfigError: For an unknown field, with the nearest valid names, or an unusable value.
    """

    peft_type: ClassVar[PeftType]
    is_prompt_learning: ClassVar[bool] = False
    # Fields that PEFT does not know; they matter before training only and are not written.
    private_fields: ClassVar[frozenset[str]] = frozenset()
    # PEFT's fields that graft does not act on, with the value that changes nothing.
    inert_fields: ClassVar[dict[str, Any]] = {}
    _registry: ClassVar[list[type[PeftConfig]]] = []

    task_type: TaskType | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    modules_to_save: list[str] | None = None
    peft_version: str | None = None
    auto_mapping: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "peft_type" in cls.__dict__:  # the others are shared by several methods
            PeftConfig._registry.append(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Before dataclass's own __init__, so that a misspelt field gets an answer that helps.
        cls._check_names(kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        # What a file said beyond the fields here; nothing acts on it, and it is written again.
        self.kept: dict[str, Any] = {}
        if self.task_type is not None:
            self.task_type = as_enum(TaskType, self.task_type, "task_type")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "bool" and not isinstance(value, bool):
                name = type(self).__name__
                raise ConfigError(f"{name}: {each.name} must be True or False, not {value!r}.")
        if self.modules_to_save is not None:
            if isinstance(self.modules_to_save, str):
                given = self.modules_to_save
                raise ConfigError(f"modules_to_save must be a list of names; write [{given!r}].")
            self.modules_to_save = list(dict.fromkeys(self.modules_to_save))

    @classmethod
    def _check_names(cls, given: dict[str, Any]) -> None:
        valid = [f.name for f in fields(cls)]
        for name in given:
            if name not in valid:
                hint = did_you_mean(name, valid)
                raise ConfigError(f"{cls.__name__} has no field {name!r}.{hint}")

    @classmethod
    def claims(cls, raw: dict[str, Any]) -> bool:
        """Whether the JSON object `raw` describes a config of this class."""
        return raw.get("peft_type") == cls.peft_type

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PeftConfig:
        """The config that `raw` (a PEFT `adapter_config.json`) describes.

        A feature of PEFT's that graft does not have is kept as it stands; whether the config can
        be used is for `require_supported` to say.

        Raises:
            ConfigError: Unknown `peft_type`, unknown key, or a value that cannot work.
        """
        owner = next((c for c in PeftConfig._registry if c.claims(raw)), None)
        if owner is None:
            known = ", ".join(c.peft_type for c in PeftConfig._registry)
            raise ConfigError(
                f"peft_type {raw.get('peft_type')!r} is not supported. Supported: {known}."
            )
        return owner._read(raw)

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> PeftConfig:
        valid = {f.name for f in fields(cls)} - cls.private_fields
        kept = {k: v for k, v in raw.items() if k not in valid and k != "peft_type"}
        for key, value in kept.items():
            # What a newer PEFT knows and has switched off is fine.
            if key not in cls.inert_fields and not _is_off(value):
                hint = did_you_mean(key, valid)
                raise ConfigError(f"{CONFIG_NAME} has an unknown key {key!r} (= {value!r}).{hint}")
        config = cls(**{key: value for key, value in raw.items() if key in valid})
        config.kept = kept
        return config

    @classmethod
    def acts(cls, key: str, value: Any) -> bool:
        """Whether `key`, which is no field here, is switched on by `value`."""
        return value != cls.inert_fields.get(key) and not _is_off(value)

    def require_supported(self) -> None:
        """Raise a ConfigError if the file of this config switches on what graft does not have."""
        for key, value in self.kept.items():
            if self.acts(key, value):
                name = type(self).__name__
                raise ConfigError(f"{name}: {key}={value!r} is not supported by graft.")

    def to_dict(self) -> dict[str, Any]:
        """The config as PEFT writes it: plain values, private fields left out."""
        out = {k: _plain(v) for k, v in asdict(self).items() if k not in self.private_fields}
        return {**out, **self.kept, "peft_type": str(self.peft_type)}

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `adapter_config.json` (sorted keys, indent 2) into `save_directory`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_NAME, self.to_json())

    def to_json(self) -> str:
        """The text of `adapter_config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_pretrained(cls, path: str | Path, **hub: Any) -> PeftConfig:
        """Read `adapter_config.json` from a folder, or from a repository on a hub.

        Args:
            path: As in `graft.download.adapter_folder`; so are the other arguments.
            **hub: `revision`, `subfolder`, `cache_dir`, `token`.
        """
        return cls.from_dict(cls.from_json_file(adapter_folder(path, **hub) / CONFIG_NAME))

    @staticmethod
    def from_json_file(path: str | Path) -> dict[str, Any]:
        """The JSON object in the file `path`."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist; is this an adapter folder?") from None
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path} is not JSON: {error}.") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} holds a {type(raw).__name__}, not an adapter config.")
        return raw

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """The config class that `peft_type` names, made with the other keyword arguments."""
        kind = as_enum(PeftType, kwargs.pop("peft_type", None), "peft_type")
        return cls.class_of(kind)(**kwargs)

    @staticmethod
    def class_of(peft_type: PeftType) -> type[PeftConfig]:
        """The config class of a method."""
        return next(c for c in PeftConfig._registry if c.peft_type is peft_type)

    def changed(self, **values: Any) -> Self:
        """A deep copy with `values` replaced; the original stays as it is."""
        other = copy.deepcopy(self)
        for name, value in values.items():
            setattr(other, name, value)
        return other

    def located(self, keys: Iterable[str]) -> Self:
        """The config with what the `keys` of its checkpoint tell, where its file does not."""
        return self

    def require(self, name: str, kind: type, low: float | None = None) -> None:
        """Check that the field `name` is a `kind` (not a bool) and at least `low`."""
        value = getattr(self, name)
        wanted = (int, float) if kind is float else kind
        if (
            isinstance(value, bool)
            or not isinstance(value, wanted)
            or (low is not None and value < low)
        ):
            bound = "" if low is None else f" of at least {low}"
            article = "an" if kind is int else "a"
            raise ConfigError(
                f"{type(self).__name__}: {name} must be {article} {kind.__name__}{bound}, "
                f"not {value!r}."
            )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default value of every field, by name."""
        out: dict[str, Any] = {}
        for f in fields(cls):
            out[f.name] = f.default_factory() if f.default_factory is not MISSING else f.default
        return out


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return value
