"""The algebra of weighted combinations of low-rank updates, in fp32.

A combination is first stated exactly, as one update `D`, then written as `B A` of some rank; what
that loses is measured and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.errors import ConfigError, did_you_mean

__all__ = ["Combination", "combine_low_rank"]

_EXACT = ("cat", "linear")
_DENSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
_TYPES = (*_EXACT, "svd", *_DENSE, *(f"{name}_svd" for name in _DENSE))

LowRank = tuple[Tensor, Tensor]  # A [R, I] and B [O, R], scaling included


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    Attributes:
        combination_type: "cat" or "linear": `sum_i w_i D_i`, exact, of the sum of the ranks. "svd":
            the same cut to `svd_rank`. "ties" (Yadav et al., "TIES-Merging", section 3): the
            largest entries of each `D_i`, signs elected, means of those that agree. "dare_linear"
            and "dare_ties" (Yu et al., "Language Models are Super Mario", eq. 3): random entries
            dropped and the rest rescaled, then the sum or TIES. "magnitude_prune": the largest
            entries of each, then the sum. The last four act on whole updates and are cut to
            `svd_rank`; PEFT's names with "_svd" mean the same.
        svd_rank: Rank of the result; None: the largest of the ranks.
        density: Share of the entries that is kept, for "ties", "dare_..." and "magnitude_prune".
        majority_sign_method: "total" elects signs by the sum of values, "frequency" by counting.

    Raises:
        ConfigError: For a type that does not exist, or a density that is missing or unusable.
    """

    combination_type: str = "svd"
    svd_rank: int | None = None
    density: float | None = None
    majority_sign_method: str = "total"

    def __post_init__(self) -> None:
        if self.combination_type not in _TYPES:
            hint = did_you_mean(str(self.combination_type), _TYPES)
            raise ConfigError(f"combination_type={self.combination_type!r} is not known.{hint}")
        if self.majority_sign_method not in ("total", "frequency"):
            raise ConfigError("majority_sign_method must be 'total' or 'frequency'.")
        if self.svd_rank is not None and not (isinstance(self.svd_rank, int) and self.svd_rank > 0):
            raise ConfigError(f"svd_rank must be an int of at least 1, not {self.svd_rank!r}.")
        if self.is_dense and not (isinstance(self.density, int | float) and 0 < self.density <= 1):
            raise ConfigError(
                f"combination_type={self.combination_type!r} needs density, the share of entries "
                f"to keep, above 0 and up to 1, not {self.density!r}."
            )

    @property
    def is_dense(self) -> bool:
        """Whether entries of whole updates are looked at."""
        return self.combination_type.removesuffix("_svd") in _DENSE

    @property
    def is_exact(self) -> bool:
        """Whether nothing is cut."""
        return self.combination_type in _EXACT and self.svd_rank is None


def combine_low_rank(
    parts: Sequence[tuple[float, LowRank]], how: Combination
) -> tuple[LowRank, float]:
    """The combination as (A, B), and its relative error `||D - B A|| / ||D||` (Frobenius)."""
    largest = max(a.shape[-2] for _, (a, _) in parts)
    rank = how.svd_rank or largest
    if how.is_dense:
        dense = _combine_dense([b @ a for _, (a, b) in parts], [w for w, _ in parts], how)
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
    else:
        a = torch.cat([a for _, (a, _) in parts], dim=-2)
        b = torch.cat([weight * b for weight, (_, b) in parts], dim=-1)
        if how.is_exact or rank >= a.shape[-2]:
            return (a, b), 0.0
        # The SVD of B A from that of a small matrix: nothing of the layer's own size is made.
        left_q, left_r = torch.linalg.qr(b)
        right_q, right_r = torch.linalg.qr(a.mT)
        left, values, right = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
        left, right = left_q @ left, right @ right_q.mT
    root = values[..., :rank].sqrt()
    kept = (root[..., :, None] * right[..., :rank, :], left[..., :rank] * root[..., None, :])
    total = values.norm().item()
    return kept, values[..., rank:].norm().item() / total if total else 0.0


def _combine_dense(deltas: list[Tensor], weights: list[float], how: Combination) -> Tensor:
    assert how.density is not None
    kind = how.combination_type.removesuffix("_svd")
    prune = _drop_at_random if kind.startswith("dare") else _keep_largest
    pruned = torch.stack([prune(delta, how.density) for delta in deltas])  # [n, O, I]
    scale = torch.tensor(weights, dtype=pruned.dtype, device=pruned.device)
    weighted = pruned * scale.view(-1, *[1] * (pruned.ndim - 1))
    if not kind.endswith("ties"):
        return weighted.sum(0)
    votes = pruned if how.majority_sign_method == "total" else pruned.sign()
    agree = pruned.sign() == torch.where(votes.sum(0) >= 0, 1, -1)
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


def _keep_largest(delta: Tensor, density: float) -> Tensor:
    kept = torch.zeros_like(delta).flatten()
    flat = delta.flatten()
    largest = flat.abs().topk(int(density * flat.numel())).indices
    kept[largest] = flat[largest]
    return kept.view_as(delta)


def _drop_at_random(delta: Tensor, density: float) -> Tensor:
    return delta * torch.bernoulli(torch.full_like(delta, density)) / density
