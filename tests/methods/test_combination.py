"""Weighted combinations against dense algebra in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graft.errors import ConfigError
from graft.methods import IA3, BitFit, BitFitConfig, Combination, IA3Config, LoraConfig
from graft.methods.base import LayerAdapter
from graft.methods.combination import combine_low_rank
from graft.methods.lora import Lora

from .conftest import linear

I, O = 9, 7  # noqa: E741


def make_parts(*ranks: int) -> list[tuple[float, tuple[Tensor, Tensor]]]:
    weights = (0.7, -0.4, 1.3)
    return [
        (weight, (torch.randn(r, I).double(), torch.randn(O, r).double()))
        for weight, r in zip(weights, ranks, strict=False)
    ]


def dense(parts) -> Tensor:
    return sum(weight * (b @ a) for weight, (a, b) in parts)


@pytest.mark.parametrize("kind", ["cat", "linear"])
def test_exact_kinds_are_the_weighted_sum(kind):
    parts = make_parts(2, 3, 1)
    (a, b), error = combine_low_rank(parts, Combination(kind))
    assert error == 0.0
    assert a.shape == (6, I)
    torch.testing.assert_close(b @ a, dense(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 1, 2, 4, 5, 20])
def test_svd_is_the_best_of_its_rank_and_says_what_it_loses(rank):
    parts = make_parts(2, 3)
    (a, b), error = combine_low_rank(parts, Combination("svd", svd_rank=rank))
    kept = rank or 3
    left, values, right = torch.linalg.svd(dense(parts), full_matrices=False)
    best = left[:, :kept] @ values[:kept].diag() @ right[:kept]
    torch.testing.assert_close(b @ a, best, rtol=0, atol=1e-10)
    assert len(a) <= kept
    lost = (dense(parts) - b @ a).norm() / dense(parts).norm()
    assert error == pytest.approx(lost.item(), abs=1e-10)


def test_a_cut_of_an_exact_kind_is_an_svd():
    parts = make_parts(2, 3)
    cut, error = combine_low_rank(parts, Combination("linear", svd_rank=2))
    same, other = combine_low_rank(parts, Combination("svd", svd_rank=2))
    assert error == other > 0
    torch.testing.assert_close(cut[1] @ cut[0], same[1] @ same[0])


def test_a_sum_that_is_nothing_has_no_error():
    zeros = (torch.zeros(2, I), torch.zeros(O, 2))
    assert combine_low_rank([(1.0, zeros)], Combination("ties", density=0.5))[1] == 0.0


def full_rank(kind: str, density: float, parts, **more) -> Tensor:
    how = Combination(kind, svd_rank=min(I, O), density=density, **more)
    (a, b), error = combine_low_rank(parts, how)
    assert error == pytest.approx(0.0, abs=1e-10)
    return b @ a


def pruned(update: Tensor, density: float) -> Tensor:
    count = int(density * update.numel())
    threshold = update.abs().flatten().sort(descending=True).values[count - 1]
    return torch.where(update.abs() >= threshold, update, 0)


@pytest.mark.parametrize("name", ["magnitude_prune", "magnitude_prune_svd"])
def test_pruning_keeps_the_largest_entries_of_each(name):
    parts = make_parts(2, 3)
    expected = sum(weight * pruned(b @ a, 0.4) for weight, (a, b) in parts)
    torch.testing.assert_close(full_rank(name, 0.4, parts), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("name", ["ties", "ties_svd"])
def test_ties_elects_signs_and_averages_those_that_agree(name, method):
    parts = make_parts(2, 3, 1)
    updates = [pruned(b @ a, 0.5) for _, (a, b) in parts]
    expected = torch.zeros(O, I).double()
    for o in range(O):
        for i in range(I):
            entries = [
                (weight, u[o, i].item()) for (weight, _), u in zip(parts, updates, strict=True)
            ]
            votes = [v if method == "total" else (v > 0) - (v < 0) for _, v in entries]
            sign = 1 if sum(votes) >= 0 else -1
            agreeing = [weight * v for weight, v in entries if v * sign > 0]
            expected[o, i] = sum(agreeing) / max(len(agreeing), 1)
    found = full_rank(name, 0.5, parts, majority_sign_method=method)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_dare_drops_at_random_and_keeps_the_mean():
    parts = make_parts(2, 3)
    draws = torch.stack([full_rank("dare_linear", 0.5, parts) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), dense(parts), rtol=0, atol=0.25)
    one = [(1.0, parts[0][1])]
    update = parts[0][1][1] @ parts[0][1][0]
    ratios = full_rank("dare_linear", 0.5, one) / update
    assert set(ratios.round(decimals=6).abs().unique().tolist()) == {0.0, 2.0}
    everything = full_rank("dare_ties", 1.0, one)
    torch.testing.assert_close(everything, update, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"combination_type": "tie"}, "'tie' is not known. Did you mean ties"),
        ({"combination_type": "ties"}, "needs density"),
        ({"combination_type": "dare_linear", "density": 1.5}, "not 1.5"),
        ({"combination_type": "magnitude_prune", "density": 0}, "not 0"),
        ({"svd_rank": 0}, "svd_rank must be an int of at least 1, not 0"),
        ({"svd_rank": 2.5}, "not 2.5"),
        ({"combination_type": "ties", "density": "half"}, "not 'half'"),
        ({"majority_sign_method": "most"}, "'total' or 'frequency'"),
    ],
)
def test_what_is_no_combination_is_refused(values, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        Combination(**values)


# --- of the methods -------------------------------------------------------------------------------


def lora(view, **options) -> Lora:
    return Lora(LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **options), view)


def update_of(view, adapter: LayerAdapter) -> Tensor:
    return adapter.affine(view).delta()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_bias": True}])
def test_lora_is_combined_with_its_scaling(options):
    view = linear()
    first, second = lora(view, **options), lora(view, **options)
    for adapter in (first, second):
        if adapter.lora_bias is not None:
            adapter.lora_bias.data.normal_()
    parts = [(0.5, first), (-2.0, second)]
    with torch.no_grad():
        affine, error = Lora.combined(view, parts, Combination("cat"))
        config = Lora.combined_config([LoraConfig(**options)] * 2, {view.path: affine})
        combined = Lora(config, view)
        combined.assign(view, affine)
        expected = 0.5 * update_of(view, first) - 2 * update_of(view, second)
        torch.testing.assert_close(update_of(view, combined), expected, rtol=0, atol=1e-5)
        if "lora_bias" in options:
            shifts = [adapter.affine(view).shift for adapter in (first, second, combined)]
            torch.testing.assert_close(shifts[2], 0.5 * shifts[0] - 2 * shifts[1])
    assert error == 0.0
    assert config.scaling(view.path) == 1.0


def test_layers_with_other_ranks_are_in_the_patterns():
    wide, narrow = linear(path="a.q_proj"), linear(path="b.q_proj")
    how = Combination("cat")
    affines = {
        wide.path: Lora.combined(wide, [(1.0, lora(wide)), (1.0, lora(wide))], how)[0],
        narrow.path: Lora.combined(narrow, [(1.0, lora(narrow))], how)[0],
    }
    config = Lora.combined_config([LoraConfig()], affines)
    assert (config.rank("a.q_proj"), config.rank("b.q_proj")) == (4, 2)
    assert config.scaling("a.q_proj") == config.scaling("b.q_proj") == 1.0


def test_what_is_no_low_rank_update_is_not_combined():
    view = linear()
    for adapter in (lora(view, use_dora=True), BitFit(BitFitConfig(), view)):
        with pytest.raises(ConfigError, match="cannot be combined"):
            Lora.combined(view, [(1.0, adapter)], Combination())
    with pytest.raises(ConfigError, match="BitFit adapters cannot be combined by weights"):
        BitFit.combined(view, [(1.0, BitFit(BitFitConfig(), view))], Combination())


@pytest.mark.parametrize("forward", [[], ["q_proj"]])
def test_ia3_counts_from_the_identity(forward):
    view = linear()
    config = IA3Config(feedforward_modules=forward)
    first, second = IA3(config, view), IA3(config, view)
    first.ia3_l.data.normal_()
    second.ia3_l.data.normal_()
    with torch.no_grad():
        parts = [(0.5, first), (-2.0, second)]
        affine, error = IA3.combined(view, parts, Combination("linear"))
        made = IA3.combined_config([config], {view.path: affine})
        combined = IA3(made, view)
        combined.assign(view, affine)
    expected = 1 + 0.5 * (first.ia3_l - 1) - 2 * (second.ia3_l - 1)
    torch.testing.assert_close(combined.ia3_l, expected)
    assert error == 0.0
    assert combined.feedforward == bool(forward)


def test_ia3_of_two_kinds_is_not_combined():
    view = linear()
    inputs = IA3(IA3Config(feedforward_modules=["q_proj"]), view)
    outputs = IA3(IA3Config(feedforward_modules=[]), view)
    with pytest.raises(ConfigError, match="a feed-forward target in some"):
        IA3.combined(view, [(1.0, inputs), (1.0, outputs)], Combination("linear"))
    with pytest.raises(ConfigError, match="combination_type='linear'"):
        IA3.combined(view, [(1.0, inputs)], Combination("svd"))
