"""What of a step's memory follows from a number of parameters alone, and how each term comes about.

The arithmetic of tutorials, exact as far as it goes; what it leaves out needs a model and its
rows, and is `step`'s to trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from graft.errors import ConfigError

__all__ = ["BASES", "Arithmetic", "Base", "find_base", "full_fine_tuning", "parse_count"]

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Base:
    """How the base model's weights are held.

    Attributes:
        name: In run files and tables.
        dtype: Name of the torch dtype that it computes in.
        bits: Of a number in a quantised weight; None where it is not quantised.
    """

    name: str
    dtype: str
    bits: int | None = None


BASES = (
    Base("fp32", "float32"),
    Base("bf16", "bfloat16"),
    Base("8-bit", "bfloat16", 8),
    Base("4-bit", "bfloat16", 4),
)
_OTHER_NAMES = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "8bit": "8-bit",
    "int8": "8-bit",
    "4bit": "4-bit",
    "nf4": "4-bit",
    "int4": "4-bit",
}


def find_base(name: str) -> Base:
    """The base called `name`, such as `bf16`, `float32` or `4bit`.

    Raises:
        ConfigError: There is none.
    """
    wanted = name.strip().lower().removeprefix("torch.")
    wanted = _OTHER_NAMES.get(wanted, wanted)
    for base in BASES:
        if base.name == wanted:
            return base
    raise ConfigError(
        f"There is no precision {name!r} of a base model here: "
        f"{', '.join(base.name for base in BASES)} are known."
    )


def parse_count(text: str) -> int:
    """The number of parameters that `text` says: `1.3B`, `350M`, `1_300_000_000`.

    Raises:
        ConfigError: It says none.
    """
    plain = re.sub(r"[_,](?=\d{3}(?!\d))", "", text)  # of thousands; 1,3B is no number here
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", plain.upper())
    number = Decimal(found[1]) * _COUNTS[found[2]] if found else Decimal(0)
    if not number or number != int(number):
        raise ConfigError(
            f"{text!r} is no number of parameters; write one such as 1.3B, 350M or 1300000000."
        )
    return int(number)


@dataclass(frozen=True)
class Arithmetic:
    """Full fine-tuning with AdamW, as far as the number of parameters tells; all in bytes.

    Attributes:
        parameters: How many.
        base: How they are held; gradients and AdamW's two averages are of the same kind.
        weights: Of the model.
        gradients: One number for each parameter.
        optimizer: Two numbers for each parameter.
    """

    parameters: int
    base: Base
    weights: int
    gradients: int
    optimizer: int

    @property
    def together(self) -> int:
        """The three terms."""
        return self.weights + self.gradients + self.optimizer

    @property
    def left_out(self) -> tuple[str, ...]:
        """What a step needs besides, which a number of parameters does not tell."""
        return "saved activations", "logits and loss", "workspace", "the device's own share"


def full_fine_tuning(parameters: int, base: Base = BASES[0]) -> Arithmetic:
    """The bytes of full fine-tuning: `n b` of weights, `n b` of gradients, `2 n b` of AdamW.

    Args:
        parameters: n.
        base: Says b, the bytes of a number.

    Raises:
        ConfigError: A quantised base, whose weights have no gradients.
    """
    if base.bits is not None:
        raise ConfigError(
            f"The weights of a base model in {base.name} have no gradients, so it cannot be "
            "fine-tuned in full; --precision fp32 or bf16 can."
        )
    size = 2 if base.dtype == "bfloat16" else 4
    each = parameters * size
    return Arithmetic(parameters, base, each, each, 2 * each)
