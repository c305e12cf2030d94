"""LoRA, with rank-stabilised scaling (rsLoRA), weight decomposition (DoRA) and starts from W."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graft.config import PeftConfig, PeftType
from graft.errors import ConfigError, did_you_mean
from graft.methods.affine import Affine
from graft.methods.base import Layer, LayerAdapter, matches_suffix, new_parameter
from graft.methods.bitfit import BitFit, BitFitConfig, is_bias_only
from graft.methods.combination import Combination, combine_low_rank
from graft.methods.targeting import TargetedConfig
from graft.methods.token_rows import TokenRows

__all__ = ["Lora", "LoraConfig"]

_LINEAR = ("linear", "conv1d")
_STARTS = "True, False, 'gaussian', 'pissa', 'pissa_niter_N', 'olora'"
# PEFT's other starts. Of the first three a plain LoRA is saved; the rest also change the base.
_PLAIN_STARTS = ("eva", "mica", "orthogonal")
_OTHER_STARTS = (*_PLAIN_STARTS, "corda", "lora_ga", "loftq")


@dataclass(kw_only=True)
class LoraConfig(TargetedConfig):
    """LoRA: `y = W x + (lora_alpha / r) * B A x` with a frozen W.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.

    Attributes:
        r: Rank of the update.
        lora_alpha: Numerator of the scaling.
        lora_dropout: Dropout on the input of A while training.
        use_rslora: Scale by `lora_alpha / sqrt(r)` (Kalajdzievski, "A Rank Stabilization Scaling
            Factor for Fine-Tuning with LoRA", eq. 4).
        use_dora: Learn each output's magnitude apart from its direction (Liu et al., "DoRA:
            Weight-Decomposed Low-Rank Adaptation", eq. 5).
        init_lora_weights: True: A uniform, B zero. "gaussian": A normal with deviation 1/r, B
            zero. "pissa": the r largest singular components of W, which are taken out of it (Meng
            et al., "PiSSA", eq. 3 and 4); "pissa_niter_N": the same by a fast SVD with N
            iterations. "olora": the first r columns of a QR decomposition, likewise
            (Büyükakyüz, "OLoRA", section 3). False: both random, so that the adapter is not the
            identity (for tests).
        rank_pattern: Rank by path suffix or regular expression, where it is not `r`.
        alpha_pattern: The same for `lora_alpha`.
        bias: "none"; "lora_only" also trains the biases of the target layers, "all" every bias.
        lora_bias: Give B a bias of its own.
        target_parameters: Suffixes of paths of bare parameters, such as `["experts.down_proj"]`:
            matrices, or 3-D stacks of one matrix per expert. `"all-linear"` reaches experts too.
        trainable_token_indices: Rows of the input embedding that are trained whole (also in an
            output head that is tied to it), or such rows by name of an embedding.
    """

    peft_type: ClassVar[PeftType] = PeftType.LORA
    inert_fields: ClassVar[dict[str, Any]] = {
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "velora_config": None,
        "alora_invocation_tokens": None,
        "use_qalora": False,
        "qalora_group_size": 16,
        "monteclora_config": None,
        "layer_replication": None,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "use_bdlora": None,
        "arrow_config": None,
        "kasa_config": None,
        "ensure_weight_tying": False,
    }

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("r", int, 1)
        self.require("lora_alpha", float)
        self.require("lora_dropout", float, 0)
        if self.lora_dropout >= 1:
            raise ConfigError(f"lora_dropout must be below 1, not {self.lora_dropout!r}.")
        start = self.init_lora_weights
        if isinstance(start, str):
            start = self.init_lora_weights = {"true": True, "false": False}.get(
                start.lower(), start
            )
        if isinstance(start, str) and not re.fullmatch(r"gaussian|pissa(_niter_\d+)?|olora", start):
            raise ConfigError(
                f"init_lora_weights={start!r} is not supported by graft. Valid: {_STARTS}."
            )
        if self.starts_from_weight and self.lora_dropout:
            raise ConfigError(
                f"init_lora_weights={start!r} needs lora_dropout=0: what it takes out of the "
                "weight is put back through the same path, where dropout would lose it."
            )
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(f"bias={self.bias!r} is not known. Valid: none, all, lora_only.")
        if self.lora_bias and self.use_dora:
            raise ConfigError("lora_bias and use_dora do not go together.")
        _check_patterns("rank_pattern", self.rank_pattern, int, 1)
        _check_patterns("alpha_pattern", self.alpha_pattern, float, -math.inf)

    @classmethod
    def claims(cls, raw: dict[str, Any]) -> bool:
        return super().claims(raw) and not is_bias_only(raw)

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> PeftConfig:
        start = raw.get("init_lora_weights")
        if start not in _OTHER_STARTS:
            return super()._read(raw)
        config = super()._read({**raw, "init_lora_weights": True})
        config.kept["init_lora_weights"] = start
        return config

    @classmethod
    def acts(cls, key: str, value: Any) -> bool:
        if key == "eva_config" or (key == "init_lora_weights" and value in _PLAIN_STARTS):
            return False
        return super().acts(key, value)

    @property
    def starts_from_weight(self) -> bool:
        """Whether A and B start as a part of W that is taken out of it."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    def token_rows(self, layer: Layer) -> list[int]:
        """Indices of the rows of `layer`, an embedding, that are trained whole."""
        wanted = self.trainable_token_indices or []
        if isinstance(wanted, list):
            return wanted if layer.role == "embedding" else []
        names = [name for name in wanted if matches_suffix(layer.path, [name])]
        return wanted[names[0]] if names else []

    def rank(self, path: str) -> int:
        """R at the layer `path`."""
        return _by_pattern(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """The factor of `B A x` at the layer `path`."""
        rank = self.rank(path)
        return _by_pattern(self.alpha_pattern, path, self.lora_alpha) / (
            math.sqrt(rank) if self.use_rslora else rank
        )


def _by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if _matches(key, path)), default)


def _matches(pattern: str, path: str) -> bool:
    # PEFT's rule: a key is a pattern for the end of the path, "^" pins it to the start.
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _check_patterns(field_name: str, patterns: dict[str, Any], kind: type, low: float) -> None:
    for pattern, value in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{field_name}: {pattern!r} is no regular expression: {error}."
            ) from None
        if isinstance(value, bool) or not isinstance(value, int | kind) or value < low:
            raise ConfigError(f"{field_name}[{pattern!r}] cannot be {value!r}.")


class Lora(LayerAdapter):
    """A low-rank update `scaling * B A` beside a frozen weight."""

    config_class = LoraConfig
    learning_rate = 5e-4
    kinds = frozenset(
        {"linear", "conv1d", "embedding", "conv", "attention", "experts", "parameter"}
    )
    default_roles = frozenset({"query", "value", "qkv"})

    def __init__(self, config: LoraConfig, layer: Layer) -> None:
        super().__init__(config, layer)
        self.scaling = config.scaling(layer.path)
        self.dropout = config.lora_dropout
        self.is_embedding = layer.kind == "embedding"
        # PEFT's names: in an embedding A and B are bare parameters.
        self._a, self._b = (
            ("lora_embedding_A", "lora_embedding_B") if self.is_embedding else ("lora_A", "lora_B")
        )
        ending = "" if self.is_embedding else ".weight"
        self.disk_names = {self._a: f"{self._a}{ending}", self._b: f"{self._b}{ending}"}
        shapes = layer.low_rank_shapes(config.rank(layer.path))
        for name, shape in zip((self._a, self._b), shapes, strict=True):
            self.register_parameter(name, new_parameter(layer, torch.zeros(shape)))
        # What was taken out of W at the start; the base model itself stays as it is.
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        self._initialise(config, layer)
        self._add_biases(config, layer)
        self.register_parameter("lora_magnitude_vector", None)
        if config.use_dora:
            self._add_magnitude(layer)

    def _initialise(self, config: LoraConfig, layer: Layer) -> None:
        a, b = self.get_parameter(self._a), self.get_parameter(self._b)
        how = config.init_lora_weights
        if config.starts_from_weight:
            self._start_from_weight(str(how), layer)
        elif self.is_embedding:  # looked up, not multiplied: A is the one that starts at zero
            nn.init.normal_(b)
            if how is False:
                nn.init.normal_(a)
        else:
            if how == "gaussian":
                nn.init.normal_(a, std=1 / len(a))
            else:
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            if how is False:
                nn.init.kaiming_uniform_(b, a=math.sqrt(5))

    def _start_from_weight(self, how: str, layer: Layer) -> None:
        if layer.kind not in _LINEAR:
            raise ConfigError(f"init_lora_weights={how!r} is for linear layers, not {layer.path}.")
        a, b = self.get_parameter(self._a), self.get_parameter(self._b)
        weight, rank = layer.weight.detach().to(a.dtype), len(a)
        if rank > min(weight.shape):
            raise ConfigError(f"{layer.path} has rank {min(weight.shape)} at most; r={rank}.")
        if how == "olora":
            left, right = torch.linalg.qr(weight)
            left, right = left[:, :rank], right[:rank]
        else:
            steps = how.removeprefix("pissa").removeprefix("_niter_")
            if steps:
                left, values, transposed = torch.svd_lowrank(weight, rank, niter=int(steps))
                right = transposed.T
            else:
                left, values, right = torch.linalg.svd(weight, full_matrices=False)
            root = (values[:rank] / self.scaling).sqrt()
            left, right = left[:, :rank] * root, root[:, None] * right[:rank]
        with torch.no_grad():
            a.copy_(right)
            b.copy_(left)
        self.start_A, self.start_B = a.detach().clone(), b.detach().clone()

    def _add_biases(self, config: LoraConfig, layer: Layer) -> None:
        for name in ("bias", "lora_bias"):
            self.register_parameter(name, None)
        if config.bias != "none" and layer.bias is not None:
            self.bias = new_parameter(layer, layer.bias)
            self.disk_names["bias"] = "base_layer.bias"
        if config.lora_bias:
            if layer.kind not in _LINEAR:
                raise ConfigError(f"lora_bias is for linear layers, not {layer.path}.")
            self.lora_bias = new_parameter(layer, torch.zeros(layer.out_features))
            self.disk_names["lora_bias"] = "lora_B.bias"

    def _add_magnitude(self, layer: Layer) -> None:
        if layer.kind not in (*_LINEAR, "conv"):
            raise ConfigError(f"use_dora is for linear layers and convolutions, not {layer.path}.")
        norm = self._norm(layer)
        self.lora_magnitude_vector = new_parameter(
            layer, norm.view(layer.vector_shape(layer.out_features))
        )
        self.disk_names["lora_magnitude_vector"] = "lora_magnitude_vector"

    def _low_rank(self, layer: Layer) -> Affine:
        """`B A` as matrices; with a start taken out of W, less that start: rank 2R."""
        a, b = layer.as_matrices(self.get_parameter(self._a), self.get_parameter(self._b))
        if self.start_A is not None:
            a, b = torch.cat([a, self.start_A]), torch.cat([b, -self.start_B], dim=1)
        return Affine(A=a, B=b, scaling=self.scaling)

    def _norm(self, layer: Layer) -> Tensor:
        """||W + scaling * B A|| per output, [O]; a constant to the gradient (DoRA, sec. 4.3)."""
        with torch.no_grad():
            delta = self._low_rank(layer).delta()
            assert delta is not None
            return (layer.weight.to(delta.dtype) + delta).norm(dim=1)

    def affine(self, layer: Layer) -> Affine:
        low = self._low_rank(layer)
        assert low.B is not None
        own, scale = layer.bias, None
        b = low.B
        if self.lora_magnitude_vector is not None:
            scale = self.lora_magnitude_vector.flatten() / self._norm(layer)  # [O]
            b = b * scale[:, None]
        return Affine(
            out_scale=scale,
            A=low.A,
            B=b,
            scaling=self.scaling,
            shift=self._shift(own, scale),
            dropout=self.dropout if self.training else 0.0,
        )

    def _shift(self, own: Tensor | None, scale: Tensor | None) -> Tensor | None:
        """What turns the base's bias, as `scale` left it, into the bias that is meant."""
        if self.lora_bias is not None:
            added = self.scaling * self.lora_bias
            return added if self.bias is None or own is None else added + self.bias - own
        if own is None or (self.bias is None and scale is None):
            return None
        meant = own if self.bias is None else self.bias
        return meant - (own if scale is None else own * scale)

    @classmethod
    def resolved(cls, config: LoraConfig, layers: Sequence[Layer], names: list[str]) -> LoraConfig:
        paths = [layer.path for layer in layers]
        for field_name in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(config, field_name):
                # Once trained it is the shapes of the tensors that count, and they are checked.
                if not config.inference_mode and not any(_matches(pattern, p) for p in paths):
                    hint = did_you_mean(pattern, {path.rpartition(".")[2] for path in paths})
                    raise ConfigError(f"{field_name}: {pattern!r} matches no target.{hint}")
        return super().resolved(config, layers, names)

    @classmethod
    def elsewhere(cls, config: LoraConfig, layer: Layer) -> LayerAdapter | None:
        rows = config.token_rows(layer) if layer.kind == "embedding" else []
        if rows:
            return TokenRows(rows, layer)
        if config.bias == "all" and layer.bias is not None:
            return BitFit(BitFitConfig(), layer)
        return None

    @classmethod
    def combined(
        cls, layer: Layer, parts: Sequence[tuple[float, LayerAdapter]], how: Combination
    ) -> tuple[Affine, float]:
        affines = [(weight, adapter.affine(layer)) for weight, adapter in parts]
        if not all(isinstance(adapter, Lora) for _, adapter in parts) or any(
            affine.out_scale is not None for _, affine in affines
        ):
            raise ConfigError(
                f"{layer.path}: DoRA, token rows and biases of other layers are no low-rank "
                "updates and cannot be combined; merge such adapters one after the other."
            )
        low = [(w, (a.A.float(), a.scaling * a.B.float())) for w, a in affines]  # pyright: ignore
        (a, b), error = combine_low_rank(low, how)
        shifts = [w * affine.shift for w, affine in affines if affine.shift is not None]
        return Affine(A=a, B=b, shift=torch.stack(shifts).sum(0) if shifts else None), error

    @classmethod
    def combined_config(
        cls, configs: Sequence[LoraConfig], affines: Mapping[str, Affine]
    ) -> LoraConfig:
        ranks = {path: affine.A.shape[-2] for path, affine in affines.items()}  # pyright: ignore
        most = max(ranks.values())
        other = {re.escape(path): rank for path, rank in ranks.items() if rank != most}
        return configs[0].changed(
            r=most,
            lora_alpha=most,  # so that the scaling is 1
            rank_pattern=other,
            alpha_pattern=dict(other),
            use_rslora=False,
            init_lora_weights=True,
            bias="none",
            lora_bias=any(affine.shift is not None for affine in affines.values()),
        )

    def assign(self, layer: Layer, affine: Affine) -> None:
        a, b = self.get_parameter(self._a), self.get_parameter(self._b)
        assert affine.A is not None
        assert affine.B is not None
        with torch.no_grad():
            for own, given in zip(layer.as_matrices(a, b), (affine.A, affine.B), strict=True):
                own.copy_(given)  # views of the parameters
            if affine.shift is not None:
                self.lora_bias.copy_(affine.shift)
