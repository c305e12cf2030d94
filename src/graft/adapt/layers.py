"""One view of each kind of layer that can be adapted: sizes, weight, and how a matrix acts on it.

This is the only place that knows how a layer stores its weight and reads its input. To methods
every layer is a matrix [O, I] with a bias [O]; a new kind of layer is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.errors import ConfigError, MergeError

__all__ = ["LayerView", "view_of"]


class LayerView(ABC):
    """A target layer as methods see it (see `graft.methods.base.Layer`).

    Attributes:
        module: The base model's own layer, never replaced.
        path: Its dotted path in the base model.
        role: "query", "key", "value", "qkv", "down", "embedding" (the input's), or None.
        kept: The weight and bias themselves, while merged ones stand in for them.
    """

    kind: str
    classes: ClassVar[tuple[type[nn.Module], ...]] = ()
    name: str = "weight"  # of the parameter
    is_bare: bool = False  # a parameter that belongs to no layer, named by `target_parameters`

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module: Any = module
        self.path = path
        self.role: str | None = None
        self.kept: tuple[nn.Parameter, nn.Parameter | None] | None = None

    @property
    def owner(self) -> Any:
        """The module that holds the parameter."""
        return self.module

    @property
    def site_path(self) -> str:
        """Path of the module at which the adapters act."""
        return self.path

    @property
    def target_path(self) -> str:
        """Path by which `target_modules` means the layer."""
        return self.path

    @property
    def disk_path(self) -> str:
        """Path of the layer in PEFT's keys."""
        return self.path

    # --- sizes ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Length of a vector over the layer's inputs (channels, for a convolution)."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """O, length of a vector over the layer's outputs."""

    def low_rank_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes in which PEFT stores A and B of rank R; flattened [R, I] and [O, R]."""
        return (rank, self.in_features), (self.out_features, rank)

    def vector_shape(self, length: int) -> tuple[int, ...]:
        """Shape in which PEFT stores a magnitude per output."""
        return (length,)

    def factor_shape(self, inputs: bool) -> tuple[int, ...]:
        """Shape in which PEFT stores a factor per input or per output."""
        return (1, self.in_features) if inputs else (self.out_features, 1)

    def as_matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A and B as PEFT stores them -> [R, I] and [O, R]."""
        return a.flatten(1), b.flatten(1)

    # --- how matrices and vectors act -----------------------------------------------------

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """`A x`: the layer's input through `a` [R, I]."""
        return F.linear(x, a.to(x.dtype))

    def expand(self, low: Tensor, b: Tensor) -> Tensor:
        """`B h`: what `project` gave, through `b` [O, R], shaped like the layer's output."""
        return F.linear(low, b.to(low.dtype))

    def over_inputs(self, vector: Tensor) -> Tensor:
        """A vector over the inputs, so that it broadcasts over the layer's input."""
        return vector

    def over_outputs(self, vector: Tensor) -> Tensor:
        """A vector over the outputs, so that it broadcasts over the layer's output."""
        return vector

    def over_columns(self, vector: Tensor) -> Tensor:
        """A vector over the inputs, as one over the columns of `weight`."""
        return vector

    # --- weight and bias ------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """The base model's weight, [O, I] ([O] for a norm), also while adapters are merged."""
        return self._as_matrix(self._stored if self.kept is None else self.kept[0])

    @property
    def bias(self) -> Tensor | None:
        """The base model's bias, [O], also while adapters are merged."""
        return self._own_bias if self.kept is None else self.kept[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight as it is stored."""
        return self._stored.dtype

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self._stored.device

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put merged values in place, in the layer's own layout and dtype.

        The parameters themselves are kept aside, so that `restore` is exact and layers tied to
        this one do not change.
        """
        stored = self._stored
        if not stored.dtype.is_floating_point:
            raise MergeError(
                f"{self.path} is quantised ({stored.dtype}); "
                "load the base model unquantised to merge."
            )
        if self.kept is None:
            self.kept = (stored, self._own_bias)
        merged = self.as_stored(weight).to(stored.dtype).contiguous()
        setattr(self.owner, self.name, nn.Parameter(merged, requires_grad=False))
        if bias is not None:
            self.owner.bias = nn.Parameter(bias.to(stored.dtype), requires_grad=False)

    def kept_parameters(self) -> list[nn.Parameter]:
        """The layer's own parameters that are no longer the module's."""
        return [parameter for parameter in self.kept or () if parameter is not None]

    def restore(self) -> None:
        """Put the layer's own parameters back."""
        if self.kept is not None:
            weight, bias = self.kept
            setattr(self.owner, self.name, weight)
            if bias is not None or self._own_bias is not None:
                self.owner.bias = bias
            self.kept = None

    def as_stored(self, matrix: Tensor) -> Tensor:
        """A weight [O, I] in the layout of the layer's parameter."""
        return matrix

    @property
    def _stored(self) -> nn.Parameter:
        return getattr(self.owner, self.name)

    @property
    def _own_bias(self) -> nn.Parameter | None:
        return getattr(self.owner, "bias", None)

    def _as_matrix(self, stored: Tensor) -> Tensor:
        return stored


class LinearView(LayerView):
    """`nn.Linear` and its quantised subclasses."""

    kind = "linear"
    classes = (nn.Linear,)

    @property
    def in_features(self) -> int:
        return self.module.in_features

    @property
    def out_features(self) -> int:
        return self.module.out_features


class Conv1DView(LayerView):
    """GPT-2's `Conv1D`: a linear layer that stores its weight [I, O]."""

    kind = "conv1d"
    classes = (Conv1D,)

    @property
    def in_features(self) -> int:
        return self.module.weight.shape[0]

    @property
    def out_features(self) -> int:
        return self.module.weight.shape[1]

    def _as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T

    def as_stored(self, matrix: Tensor) -> Tensor:
        return matrix.T


class EmbeddingView(LayerView):
    """`nn.Embedding`, a linear layer over one-hot ids; stores its weight [V, D]."""

    kind = "embedding"
    classes = (nn.Embedding,)

    @property
    def in_features(self) -> int:
        return self.module.num_embeddings

    @property
    def out_features(self) -> int:
        return self.module.embedding_dim

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return F.embedding(x, a.T)

    def expand(self, low: Tensor, b: Tensor) -> Tensor:
        # Some models scale what they look up (Gemma); then the update is scaled alike.
        return F.linear(low, b) * getattr(self.module, "embed_scale", 1.0)

    def _as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T

    def as_stored(self, matrix: Tensor) -> Tensor:
        return matrix.T


class ConvView(LayerView):
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`: a matrix [O, C * k * k] over patches of the input."""

    kind = "conv"
    classes = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    @property
    def in_features(self) -> int:
        return self.module.in_channels

    @property
    def out_features(self) -> int:
        return self.module.out_channels

    @property
    def _ones(self) -> tuple[int, ...]:
        return (1,) * len(self.module.kernel_size)

    def low_rank_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.module.groups > 1:
            raise ConfigError(
                f"{self.path} is a convolution in {self.module.groups} groups; a low-rank update "
                "needs one whose outputs see all inputs. Leave it out."
            )
        kernel = self.module.weight.shape[1:]
        return (rank, *kernel), (self.out_features, rank, *self._ones)

    def vector_shape(self, length: int) -> tuple[int, ...]:
        return (1, length, *self._ones)

    def factor_shape(self, inputs: bool) -> tuple[int, ...]:
        return self.vector_shape(self.in_features if inputs else self.out_features)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        module = self.module
        kernel = a.to(x.dtype).view(len(a), *module.weight.shape[1:])
        padding = module.padding
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = 0
        convolve = getattr(F, f"conv{len(module.kernel_size)}d")
        return convolve(x, kernel, None, module.stride, padding, module.dilation)

    def expand(self, low: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("or,br...->bo...", b.to(low.dtype), low)

    def over_inputs(self, vector: Tensor) -> Tensor:
        return vector.view(-1, *self._ones)

    def over_outputs(self, vector: Tensor) -> Tensor:
        return vector.view(-1, *self._ones)

    def over_columns(self, vector: Tensor) -> Tensor:
        if self.module.groups > 1:
            raise MergeError(
                f"{self.path}: factors of a grouped convolution's inputs do not merge."
            )
        return vector.repeat_interleave(self.module.weight[0, 0].numel())

    def _as_matrix(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.module.weight.shape)


class NormView(LayerView):
    """`nn.LayerNorm`: only its bias is adapted."""

    kind = "norm"
    classes = (nn.LayerNorm,)

    @property
    def in_features(self) -> int:
        return self.module.normalized_shape[-1]

    @property
    def out_features(self) -> int:
        return self.module.normalized_shape[-1]


_VIEWS: tuple[type[LayerView], ...] = (LinearView, Conv1DView, EmbeddingView, ConvView, NormView)


def view_of(module: nn.Module, path: str) -> LayerView | None:
    """The view of `module`, or None for what is not adapted."""
    for view in _VIEWS:
        if isinstance(module, view.classes):
            return view(module, path)
    return None
