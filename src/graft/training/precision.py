"""Whether the frozen base model is held in bfloat16, and why.

Adapters are in float32 in any case. A run file that says nothing leaves the decision to the
hardware and to the model's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

__all__ = ["Hardware", "base_in_bf16", "decide", "this_hardware"]

# A narrower model trains in minutes in float32 too, and feels the rounding most.
_NARROW = 512
_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


@dataclass(frozen=True)
class Hardware:
    """What computes.

    Attributes:
        name: For people.
        bf16: Whether its matrix products are faster in bfloat16 than in float32.
    """

    name: str
    bf16: bool


def base_in_bf16(
    wanted: bool | None, base: PreTrainedConfig, kind: str | None = None
) -> tuple[bool, str]:
    """Whether to hold the base model in bfloat16 on this machine, and why.

    Args:
        wanted: What the run file says; None where it says nothing.
        base: The base model's config.
        kind: Of device; None: the accelerator, where there is one.
    """
    width = getattr(base.get_text_config(), "hidden_size", None)
    return decide(wanted, width, this_hardware(kind))


def decide(wanted: bool | None, width: int | None, hardware: Hardware) -> tuple[bool, str]:
    """The decision of `base_in_bf16` from its facts.

    Args:
        wanted: What the run file says.
        width: The model's hidden size; None where its config names none.
        hardware: What computes.
    """
    if wanted is not None:
        return wanted, "as the run file says"
    if not hardware.bf16:
        return False, f"{hardware.name} has no units for bfloat16"
    if width is not None and width < _NARROW:
        return False, f"a model of width {width} is small enough for it; `train.bf16` overrides"
    return True, f"{hardware.name} computes in it"


def this_hardware(kind: str | None = None) -> Hardware:
    """Where a run of this process computes; `kind` of device, None: the best there is."""
    other = torch.accelerator.current_accelerator()
    kind = kind or (other.type if other is not None else "cpu")
    if kind == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(torch.cuda.get_device_name(), bf16)
    if kind != "cpu":
        return Hardware(f"{kind} as far as measured", False)
    if not torch.backends.mkldnn.is_available():
        return Hardware("this build of torch", False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    found = [unit for name, unit in _UNITS.items() if known.get(name)]
    return Hardware(f"the processor ({found[0]})" if found else "the processor", bool(found))
