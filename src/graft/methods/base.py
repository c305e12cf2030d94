"""What a method is: the abstract classes that every adapter module implements.

Letters of shapes, here and everywhere: B rows, T tokens, D hidden, I in, O out, R rank,
N virtual tokens, L layers, H key-value heads, K head dimension, V vocabulary.

Methods know nothing of models, routing or files. What they need of the base model reaches them
as a `Layer` (one target layer) or a `BaseShape` (the model as a whole).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from graft.config import PeftConfig
from graft.errors import CheckpointError, ConfigError
from graft.methods.affine import Affine
from graft.methods.combination import Combination

__all__ = [
    "BaseShape",
    "Layer",
    "LayerAdapter",
    "PrefixAdapter",
    "PromptAdapter",
    "VirtualTokens",
    "adapter_dtype",
    "check_shape",
    "matches_suffix",
    "new_parameter",
]


class Layer(Protocol):
    """One view of a target layer, whatever its class: a matrix [O, I] with a bias [O].

    See `graft.adapt.layers.LayerView` for what each member means.
    """

    kind: str  # such as "linear"; see the views
    path: str
    role: str | None  # "query", "key", "value", "qkv", "down", "embedding", or None

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def weight(self) -> Tensor: ...  # [O, I]; [O] for a norm

    @property
    def bias(self) -> Tensor | None: ...  # [O]

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def low_rank_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]: ...

    def vector_shape(self, length: int) -> tuple[int, ...]: ...

    def factor_shape(self, inputs: bool) -> tuple[int, ...]: ...

    def as_matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]: ...

    def project(self, x: Tensor, a: Tensor) -> Tensor: ...

    def expand(self, low: Tensor, b: Tensor) -> Tensor: ...

    def over_inputs(self, vector: Tensor) -> Tensor: ...

    def over_outputs(self, vector: Tensor) -> Tensor: ...

    def over_columns(self, vector: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class BaseShape:
    """What virtual tokens need to know of the base model.

    Attributes:
        hidden: D, size of an input embedding.
        num_layers: L, layers that hold a key-value cache (the decoder's in an encoder-decoder).
        attention_heads: Attention heads (of the queries).
        num_heads: H, key-value heads.
        head_dim: K.
        vocab_size: V, rows of the input embedding.
        submodules: 2 for an encoder-decoder, else 1; PEFT repeats saved prompts so many times.
        dtype: Of the parameters to make.
        device: Of the parameters to make.
        embed: ids [N] -> input embeddings [N, D], as the model's first layer sees them.
        tokenize: text -> ids, with the tokenizer named in the config.
        key_values: ids [N] -> the model's own key-value cache [L, 2, H, N, K] of these tokens.
    """

    hidden: int
    num_layers: int
    attention_heads: int
    num_heads: int
    head_dim: int
    vocab_size: int
    submodules: int
    dtype: torch.dtype
    device: torch.device
    embed: Callable[[Tensor], Tensor]
    tokenize: Callable[[str], list[int]]
    key_values: Callable[[Tensor], Tensor]

    def sampled_ids(self, count: int) -> Tensor:
        """`count` random rows of the vocabulary."""
        return torch.randint(0, self.vocab_size, (count,), device=self.device)

    def text_ids(self, text: str, count: int) -> Tensor:
        """The ids of `text`, cut or repeated to `count`."""
        ids = self.tokenize(text)
        if not ids:
            raise ConfigError(f"The text to start from, {text!r}, has no tokens.")
        repeats = -(-count // len(ids))
        return torch.tensor((ids * repeats)[:count], device=self.device)


def adapter_dtype(base: torch.dtype) -> torch.dtype:
    """fp32 over a half-precision (or quantised) base, else the base's own dtype."""
    return base if base in (torch.float32, torch.float64) else torch.float32


def new_parameter(layer: Layer, values: Tensor) -> nn.Parameter:
    """A parameter for an adapter at `layer`: its device, fp32 over a half-precision base."""
    return nn.Parameter(values.detach().clone().to(layer.device, adapter_dtype(layer.dtype)))


def matches_suffix(path: str, names: Iterable[str]) -> bool:
    """Whether `path` is one of `names` or ends with one at a dot (PEFT's rule for lists)."""
    return any(path == name or path.endswith(f".{name}") for name in names)


class LayerAdapter(nn.Module, ABC):
    """One adapter at one target layer: LoRA, IA3, BitFit.

    Subclasses take `(config, layer)` and start as the identity unless the config says otherwise.
    """

    config_class: ClassVar[type[PeftConfig]]
    learning_rate: ClassVar[float]  # a default that trains
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})  # of layers it can adapt
    # Roles adapted where the config names no targets; empty: every layer that has a bias.
    default_roles: ClassVar[frozenset[str]] = frozenset()
    disk_names: dict[str, str]  # parameter -> PEFT's suffix

    @abstractmethod
    def __init__(self, config: Any, layer: Layer) -> None:
        super().__init__()

    @abstractmethod
    def affine(self, layer: Layer) -> Affine:
        """This adapter's effect on `layer`, differentiable in its parameters."""

    @classmethod
    def resolved(cls, config: Any, layers: Sequence[Layer], names: list[str]) -> Any:
        """A copy of `config` that says what was chosen where it had left the choice open.

        Args:
            config: The user's config; not changed.
            layers: The target layers found.
            names: Suffixes that match just these.
        """
        narrowed = config.layers_to_transform is not None and (
            "layers_to_transform" in config.private_fields
            # PEFT counts by the last number in a path, which is no layer's then.
            or any(len(re.findall(r"\.\d+(?=\.)", layer.path)) > 1 for layer in layers)
        )
        if narrowed:
            return config.changed(
                target_modules=names, layers_to_transform=None, layers_pattern=None
            )
        said = config.target_modules not in (None, "all-linear")
        return config if said else config.changed(target_modules=names)

    @classmethod
    def elsewhere(cls, config: Any, layer: Layer) -> LayerAdapter | None:
        """What the method trains at a layer that is no target (LoRA with `bias="all"`)."""
        return None

    def for_tied(self, layer: Layer) -> LayerAdapter | None:
        """What must act at `layer`, an output head tied to this embedding, so that both agree."""
        return None

    @classmethod
    def combined(
        cls, layer: Layer, parts: Sequence[tuple[float, LayerAdapter]], how: Combination
    ) -> tuple[Affine, float]:
        """The weighted combination of adapters at one layer, and its relative error.

        Adapters that do not act at `layer` are not among `parts`: they are the identity there.

        Raises:
            ConfigError: The method, or these adapters, cannot be combined.
        """
        raise ConfigError(f"{cls.__name__} adapters cannot be combined by weights.")

    @classmethod
    def combined_config(cls, configs: Sequence[Any], affines: Mapping[str, Affine]) -> Any:
        """The config of an adapter that holds `affines`, by path; targets are the caller's."""
        return configs[0]

    def assign(self, layer: Layer, affine: Affine) -> None:
        """Take the values of `affine`, which `combined` made for this layer."""
        raise NotImplementedError

    def to_disk(self) -> dict[str, Tensor]:
        """Tensors by PEFT's suffix."""
        return {suffix: getattr(self, name).detach() for name, suffix in self.disk_names.items()}

    def from_disk(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values in; keys are those of `to_disk`, shapes are checked by the caller."""
        with torch.no_grad():
            for name, suffix in self.disk_names.items():
                self.get_parameter(name).copy_(tensors[suffix])


class VirtualTokens(nn.Module, ABC):
    """N learned vectors per adapter: a plain table, or what an encoder makes of one.

    Subclasses take `(config, base)` and set one of `prompt_embeddings` and `encoder`.
    """

    config_class: ClassVar[type[PeftConfig]]
    learning_rate: ClassVar[float]

    @abstractmethod
    def __init__(self, config: Any, base: BaseShape) -> None:
        super().__init__()
        self.num_virtual_tokens: int = config.num_virtual_tokens
        self.base = base
        self.encoder: nn.Module | None = None  # () -> rows
        self.register_parameter("prompt_embeddings", None)

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per virtual token."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """PEFT's `token_dim` and `num_attention_heads` for the config."""

    @property
    def is_fixed(self) -> bool:
        """Whether the vectors came without the encoder that made them, and cannot learn."""
        own = self.prompt_embeddings
        return self.encoder is None and own is not None and not own.requires_grad

    def rows(self) -> Tensor:
        """The vectors, [N, width]."""
        return self.prompt_embeddings if self.encoder is None else self.encoder()

    def settled_rows(self) -> Tensor:
        """The vectors as they are in use, [N, width]: without the dropout of training."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self.rows().detach()
        finally:
            self.train(training)

    def makes(self, rows: Tensor) -> bool:
        """Whether the vectors are `rows`, of which only the first N count (see `from_disk`)."""
        own = self.settled_rows()
        first = rows[: len(own)].to(own)
        return first.shape == own.shape and torch.allclose(own, first, atol=1e-5)

    def to_disk(self) -> dict[str, Tensor]:
        """What PEFT saves: the vectors, without the encoder that made them."""
        return {"prompt_embeddings": self.settled_rows()}

    def from_disk(
        self, tensors: Mapping[str, Tensor], encoder: Mapping[str, Tensor] | None
    ) -> None:
        """Take saved vectors in, and the encoder where it was kept.

        Args:
            tensors: `prompt_embeddings` [N, width], or [submodules * N, width].
            encoder: State of the encoder; None where it was not saved, as in any file of PEFT's.
                The vectors are then fixed: nothing is left that could be trained on.
        """
        rows = tensors["prompt_embeddings"]
        if len(rows) != self.num_virtual_tokens * self.base.submodules:
            check_shape("prompt_embeddings", rows, (self.num_virtual_tokens, self.width))
        rows = rows[: self.num_virtual_tokens].to(self.base.dtype)
        check_shape("prompt_embeddings", rows, (self.num_virtual_tokens, self.width))
        if self.encoder is None:
            with torch.no_grad():
                self.prompt_embeddings.copy_(rows)
        elif encoder is None:
            self.encoder = None
            self.prompt_embeddings = nn.Parameter(rows.to(self.base.device), requires_grad=False)
        else:
            self.encoder.load_state_dict(dict(encoder))
            if not self.makes(rows):
                raise CheckpointError(
                    "The saved encoder does not make the saved virtual tokens; "
                    "the two files of this adapter are from different runs."
                )


class PromptAdapter(VirtualTokens):
    """Virtual tokens given to the model as input embeddings: Prompt-Tuning, P-Tuning."""

    @property
    def width(self) -> int:
        return self.base.hidden

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "token_dim": self.base.hidden,
            "num_attention_heads": self.base.attention_heads,
        }

    def embeddings(self) -> Tensor:
        """The virtual tokens, [N, D]."""
        return self.rows()

    def to_disk(self) -> dict[str, Tensor]:
        # PEFT keeps a copy for the decoder of an encoder-decoder and never reads it.
        rows = super().to_disk()["prompt_embeddings"]
        return {"prompt_embeddings": rows.repeat(self.base.submodules, 1)}


class PrefixAdapter(VirtualTokens):
    """Virtual tokens given to every layer as keys and values: Prefix-Tuning."""

    @property
    def width(self) -> int:
        return 2 * self.base.num_layers * self.base.num_heads * self.base.head_dim

    @property
    def sizes(self) -> dict[str, int]:
        heads = self.base.num_heads
        return {"token_dim": heads * self.base.head_dim, "num_attention_heads": heads}

    def key_values(self) -> Tensor:
        """The prefix, [L, 2, H, N, K]; index 0 of the second axis is the keys."""
        heads = (self.base.num_heads, self.base.head_dim)
        vectors = self.rows().view(self.num_virtual_tokens, -1, *heads)[:, self._order]
        return vectors.unflatten(1, (-1, 2)).permute(1, 2, 3, 0, 4)

    @property
    def _order(self) -> list[int]:
        """For each layer's keys and values in turn, which of the 2L vectors of a row they are.

        One after the other in a decoder. In an encoder-decoder PEFT repeats the 2L vectors and
        cuts them into fours, of which each layer uses the first two, so that layer i has vectors
        4i and 4i + 1 modulo 2L. With an even number of layers half of the vectors are never used
        and layers share the rest. Adapters in the world are trained so: it is part of the format.
        """
        layers, step = self.base.num_layers, 2 * self.base.submodules
        return [(step * i + part) % (2 * layers) for i in range(layers) for part in range(2)]

    def set_key_values(self, key_values: Tensor) -> None:
        """Start from the cache [L, 2, H, N, K] of real tokens; not with a projection."""
        if self.encoder is not None:
            raise ConfigError("A prefix with prefix_projection cannot start from given key-values.")
        vectors = key_values.permute(3, 0, 1, 2, 4).flatten(1, 2)  # [N, 2L, H, K]
        shape = (self.num_virtual_tokens, self.width)
        check_shape("The key-values to start from", vectors.flatten(1), shape)
        own = self.prompt_embeddings.detach().view_as(vectors)
        # Last first, so that of layers that share a vector the first has its own.
        for place, vector in reversed(list(enumerate(self._order))):
            own[:, vector] = vectors[:, place]


def check_shape(name: str, given: Tensor, wanted: Sequence[int]) -> None:
    """Raise a CheckpointError that names both shapes unless they are equal."""
    if tuple(given.shape) != tuple(wanted):
        raise CheckpointError(
            f"{name} has shape {tuple(given.shape)}, the model needs {tuple(wanted)}; "
            "was the adapter trained on another base model?"
        )
