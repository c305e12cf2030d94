"""What the files of a base model hold, read off their headers: no tensor is loaded.

The headers are given to transformers as tensors without memory, and it loads them as it would
load the files. So its renamings, fused experts and tied weights count, and no table is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import str_to_torch_dtype
from transformers.utils import logging

from graft.download import require_whole
from graft.errors import CheckpointError
from graft.inspection.folding import fold_paths

__all__ = ["Misfit", "StoredWeights", "read_stored_weights"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Misfit:
    """A tensor whose shape in the files is not the one that the config says.

    Attributes:
        name: Of the parameter.
        stored: Its shape in the files.
        expected: Its shape by the config.
    """

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True)
class StoredWeights:
    """What the files of a base model hold, against what its config says.

    Attributes:
        files: How many files.
        bytes: Bytes of the tensors in them.
        quantization: How they are quantised, such as `gptq 4-bit`; None where they are not.
        dtypes: By parameter, the dtype in the files. Of a quantised one, that of its codes.
        missing: Parameters of the model that are in no file.
        unexpected: Tensors in the files that the model has no place for.
        misfits: Tensors of another shape.
    """

    files: int
    bytes: int
    quantization: str | None
    dtypes: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[Misfit, ...]

    def warnings(self, heads: Sequence[str]) -> list[str]:
        """A sentence on each way in which files and config do not agree.

        Args:
            heads: Paths of new heads, which need not be in the files.
        """
        out = [
            f"{misfit.name} is {_shape(misfit.stored)} in the files, the config says "
            f"{_shape(misfit.expected)}."
            for misfit in self.misfits[:3]
        ]
        if len(self.misfits) > 3:
            out.append(f"{len(self.misfits) - 3} more tensors have another shape in the files.")
        inside = tuple(f"{head}." for head in heads)
        new = [name for name in self.missing if name.startswith(inside)]
        lacking = [name for name in self.missing if name not in new]
        if new:
            out.append(f"Not in the files, so it starts at random: {_some(new)}.")
        if lacking:
            out.append(f"The config's model has what the files lack: {_some(lacking)}.")
        if self.unexpected:
            out.append(f"In the files, but not in the config's model: {_some(self.unexpected)}.")
        return out


def read_stored_weights(folder: Path, model: PreTrainedModel) -> StoredWeights | None:
    """What the safetensors in `folder` hold for `model`; None where there are none.

    Args:
        folder: Of the base model.
        model: Made from its config alone.

    Raises:
        CheckpointError: Files that are missing, cut short or broken.
    """
    paths = _files(folder)
    if not paths:
        return None
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _header(path)
    given = getattr(model.config, "quantization_config", None)
    dtypes, missing, unexpected, misfits = _compare(model, tensors)
    if given is not None:
        missing, unexpected, codes = _without_codes(model, tensors, missing, unexpected)
        dtypes |= codes
        misfits = []
    return StoredWeights(
        files=len(paths),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        quantization=None if given is None else _quantization(given),
        dtypes=dtypes,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misfits=tuple(misfits),
    )


def _files(folder: Path) -> list[Path]:
    """The files that transformers would load; all are there."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index} is broken; download it again.") from None
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise CheckpointError(
            f"{len(lacking)} of the {len(names)} files of the weights are not there, such as "
            f"{lacking[0]}; download the rest."
        )
    return [folder / name for name in names]


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without their numbers.

    safetensors itself maps the whole file into memory, which a small machine refuses for a large
    model.
    """
    require_whole(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    strange = {entry["dtype"] for entry in header.values()} - str_to_torch_dtype.keys()
    if strange:
        raise CheckpointError(f"{path} has tensors of an unknown dtype: {', '.join(strange)}.")
    return {
        name: torch.empty(entry["shape"], dtype=str_to_torch_dtype[entry["dtype"]], device="meta")
        for name, entry in header.items()
    }


def _compare(
    model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, str], list[str], list[str], list[Misfit]]:
    """The dtype of each parameter; what is missing, unexpected, of another shape."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.__dict__.pop("quantization_config", None)  # needs packages, and changes the layers
    dtypes: dict[str, str] = {}
    unexpected: dict[str, None] = {}
    misfits: list[Misfit] = []
    names = dict(model.named_parameters(remove_duplicate=False))
    absent = set(model.state_dict())
    # One dtype at a time, as what is loaded becomes the model's own.
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
        own = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        info = _loaded(type(model), config, own)
        missing: set[str] = set(info["missing_keys"])
        absent &= missing
        dtypes |= dict.fromkeys(names.keys() - missing, _name(dtype))
        unexpected |= dict.fromkeys(sorted(info["unexpected_keys"]))
        misfits += [
            Misfit(name, tuple(stored), tuple(expected))
            for name, stored, expected in info["mismatched_keys"]
        ]
    return (
        dtypes,
        [name for name in names if name in absent],
        list(unexpected),
        sorted(misfits, key=lambda misfit: list(names).index(misfit.name)),
    )


def _loaded(
    kind: type[PreTrainedModel], config: PreTrainedConfig, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """What transformers says of loading `tensors`."""
    try:
        with _in_silence():
            loaded: Any = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"The weights cannot be set against the config: {reason}") from None
    return loaded[1]


def _without_codes(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> tuple[list[str], list[str], dict[str, str]]:
    """Of a quantised model: what is missing and unexpected beyond codes, and the codes' dtypes.

    A quantised layer keeps codes and scales under names of their own; they belong to the module
    that they lie in.
    """
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    codes: dict[str, Tensor] = {}
    strange: list[str] = []
    for name in unexpected:
        parts = name.split(".")
        above = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        owner = next((path for path in above if path in owners), None)
        tensor = tensors.get(name)
        if owner is None:
            strange.append(name)
        elif tensor is not None and (owner not in codes or tensor.numel() > codes[owner].numel()):
            codes[owner] = tensor
    found = {name: codes.get(name.rpartition(".")[0]) for name in missing}
    return (
        [name for name, tensor in found.items() if tensor is None],
        strange,
        {name: _name(tensor.dtype) for name, tensor in found.items() if tensor is not None},
    )


def _quantization(given: Any) -> str:
    """`gptq 4-bit`, as far as the config says."""
    raw: dict[str, Any] = given if isinstance(given, dict) else given.to_dict()
    method = str(raw.get("quant_method", "quantised"))
    bits = raw.get("bits") or (4 if raw.get("load_in_4bit") else None)
    bits = bits or (8 if raw.get("load_in_8bit") or method == "fp8" else None)
    return method if bits is None else f"{method} {bits}-bit"


@contextmanager
def _in_silence() -> Iterator[None]:
    """Without transformers' own report and progress bar inside the block."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _some(names: Sequence[str]) -> str:
    """The names, folded; not more than five."""
    short = fold_paths(names)
    return ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
