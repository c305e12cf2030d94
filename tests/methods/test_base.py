from __future__ import annotations

import pytest
import torch
from torch import nn

from graft.errors import CheckpointError, ConfigError
from graft.methods import (
    Affine,
    Combination,
    Layer,
    LayerAdapter,
    LoraConfig,
    PrefixTuning,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuning,
    PromptTuningConfig,
    PTuning,
)
from graft.methods.base import adapter_dtype, check_shape, matches_suffix, new_parameter

from .conftest import HEAD_DIM, HEADS, HIDDEN, LAYERS, VOCAB, linear, make_shape


@pytest.mark.parametrize(
    ("path", "names", "matches"),
    [
        ("model.layers.0.q_proj", ["q_proj"], True),
        ("model.layers.0.q_proj", ["layers.0.q_proj"], True),
        ("model.layers.0.q_proj", ["proj"], False),  # at a dot only
        ("q_proj", ["q_proj"], True),
        ("my_q_proj", ["q_proj"], False),
        ("model.layers.0.q_proj", ["k_proj", "v_proj"], False),
        ("model.layers.0.q_proj", [], False),
    ],
)
def test_suffixes_match_at_dots(path, names, matches):
    assert matches_suffix(path, names) is matches


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.uint8, torch.float32),
    ],
)
def test_adapters_are_in_full_precision(base, adapter):
    assert adapter_dtype(base) is adapter


def test_a_new_parameter_is_a_copy_in_full_precision():
    view = linear()
    view.module.bfloat16()
    values = torch.ones(3, dtype=torch.bfloat16)
    parameter = new_parameter(view, values)
    assert isinstance(parameter, nn.Parameter)
    assert parameter.dtype == torch.float32
    same_kind = new_parameter(linear(), start := torch.ones(3))
    start.zero_()
    assert same_kind.tolist() == [1, 1, 1]


def test_shapes_that_differ_are_both_named():
    check_shape("lora_A", torch.zeros(4, 8), (4, 8))
    with pytest.raises(
        CheckpointError, match=r"lora_A has shape \(4, 8\), the model needs \(2, 8\)"
    ):
        check_shape("lora_A", torch.zeros(4, 8), (2, 8))


def test_ids_to_start_from(shape):
    ids = shape.sampled_ids(500)
    assert ids.shape == (500,)
    assert set(ids.tolist()) == set(range(VOCAB))
    assert shape.text_ids("3 1 4", 2).tolist() == [3, 1]
    assert shape.text_ids("3 1 4", 3).tolist() == [3, 1, 4]
    assert shape.text_ids("3 1 4", 7).tolist() == [3, 1, 4, 3, 1, 4, 3]
    with pytest.raises(ConfigError, match="'', has no tokens"):
        shape.text_ids("", 3)


class Plain(LayerAdapter):
    """The least that a method at layers needs."""

    config_class = LoraConfig

    def __init__(self, config: LoraConfig, layer: Layer) -> None:
        super().__init__(config, layer)
        self.disk_names = {"shift": "shift"}
        self.shift = new_parameter(layer, torch.zeros(layer.out_features))

    def affine(self, layer: Layer) -> Affine:
        return Affine(shift=self.shift)


def test_what_a_method_does_not_say_has_an_answer():
    view, config = linear(), LoraConfig()
    adapter = Plain(config, view)
    adapter.from_disk({"shift": torch.ones(4)})
    assert adapter.to_disk()["shift"].tolist() == [1] * 4
    assert Plain.resolved(config, [view], ["q_proj"]).target_modules == ["q_proj"]
    assert Plain.elsewhere(config, view) is None
    assert adapter.for_tied(view) is None
    with pytest.raises(ConfigError, match="Plain adapters cannot be combined by weights"):
        Plain.combined(view, [(1.0, adapter)], Combination())
    assert Plain.combined_config([config], {}) is config
    with pytest.raises(NotImplementedError):
        adapter.assign(view, adapter.affine(view))


# --- virtual tokens on disk -----------------------------------------------------------------------


def prompt(base, **values) -> PromptTuning:
    return PromptTuning(PromptTuningConfig(num_virtual_tokens=3, **values), base)


def p_tuning(base, **values) -> PTuning:
    return PTuning(PromptEncoderConfig(num_virtual_tokens=3, **values), base)


def test_saved_rows_come_back(shape):
    first, second = prompt(shape), prompt(shape)
    saved = first.to_disk()
    assert saved["prompt_embeddings"].shape == (3, HIDDEN)
    second.from_disk(saved, None)
    assert torch.equal(second.embeddings(), first.embeddings())
    assert second.prompt_embeddings.requires_grad
    assert not second.is_fixed


@pytest.mark.parametrize("kind", [prompt, p_tuning])
def test_an_encoder_decoder_saves_its_rows_twice(kind):
    base = make_shape(submodules=2)
    saved = kind(base).to_disk()["prompt_embeddings"]
    assert saved.shape == (6, HIDDEN)
    assert torch.equal(saved[:3], saved[3:])
    other = kind(base)
    other.from_disk({"prompt_embeddings": saved}, None)
    assert torch.equal(other.embeddings(), saved[:3])


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_another_number_of_rows_is_refused(shape, rows):
    with pytest.raises(CheckpointError, match=rf"\({rows}, 8\), the model needs \(3, 8\)"):
        prompt(shape).from_disk({"prompt_embeddings": torch.zeros(rows, HIDDEN)}, None)


def test_another_width_is_refused(shape):
    with pytest.raises(CheckpointError, match=r"\(3, 9\), the model needs \(3, 8\)"):
        prompt(shape).from_disk({"prompt_embeddings": torch.zeros(3, 9)}, None)


def test_an_encoder_comes_back_from_its_own_state(shape):
    first, second = p_tuning(shape), p_tuning(shape)
    second.from_disk(first.to_disk(), first.encoder.state_dict())
    assert torch.equal(second.rows(), first.rows())
    assert not second.is_fixed
    assert second.encoder is not None


def test_rows_without_their_encoder_are_fixed(shape):
    first, second = p_tuning(shape), p_tuning(shape)
    second.from_disk(first.to_disk(), None)
    assert second.is_fixed
    assert second.encoder is None
    assert torch.equal(second.embeddings(), first.embeddings())
    assert not any(p.requires_grad for p in second.parameters())


def test_an_encoder_of_another_run_is_refused(shape):
    first, second = p_tuning(shape), p_tuning(shape)
    with pytest.raises(CheckpointError, match="does not make the saved virtual tokens"):
        p_tuning(shape).from_disk(first.to_disk(), second.encoder.state_dict())


def test_what_is_saved_is_free_of_dropout(shape):
    adapter = p_tuning(shape, encoder_dropout=0.5)
    adapter.train()
    saved = adapter.to_disk()["prompt_embeddings"]
    assert adapter.training
    adapter.eval()
    assert torch.equal(saved, adapter.rows())
    again = p_tuning(shape, encoder_dropout=0.5)
    again.train()
    again.from_disk({"prompt_embeddings": saved}, adapter.encoder.state_dict())
    assert again.makes(saved)


def test_rows_that_are_made(shape):
    adapter = p_tuning(shape)
    rows = adapter.settled_rows()
    assert adapter.makes(rows)
    assert adapter.makes(torch.cat([rows, rows + 1]))  # only the first N count
    assert not adapter.makes(rows + 1)
    assert not adapter.makes(rows[:2])
    assert not rows.requires_grad


# --- prefixes -------------------------------------------------------------------------------------


def prefix(base, **values) -> PrefixTuning:
    return PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=3, init_weights="zero", **values), base
    )


def test_key_values_are_laid_out_as_in_peft(shape):
    adapter = prefix(shape)
    width = 2 * LAYERS * HEADS * HEAD_DIM
    assert adapter.width == width
    with torch.no_grad():
        adapter.prompt_embeddings.copy_(torch.arange(3.0 * width).view(3, width))
    found = adapter.key_values()
    assert found.shape == (LAYERS, 2, HEADS, 3, HEAD_DIM)
    # PEFT: view(N, 2L, H, K), permuted to [2L, H, N, K]; layer i has 2i (keys) and 2i + 1 (values).
    stacked = adapter.prompt_embeddings.view(3, 2 * LAYERS, HEADS, HEAD_DIM).permute(1, 2, 0, 3)
    for layer in range(LAYERS):
        assert torch.equal(found[layer, 0], stacked[2 * layer])
        assert torch.equal(found[layer, 1], stacked[2 * layer + 1])


@pytest.mark.parametrize(("submodules", "layers"), [(1, 2), (1, 3), (2, 3), (2, 1)])
def test_a_prefix_starts_from_given_key_values(submodules, layers):
    base = make_shape(submodules, layers)
    adapter = prefix(base)
    given = base.key_values(torch.zeros(3))
    adapter.set_key_values(given)
    assert torch.equal(adapter.key_values(), given)


def test_layers_of_an_encoder_decoder_that_share_a_vector_have_the_first_ones():
    base = make_shape(submodules=2, layers=4)  # layers 0 and 2 share, and 1 and 3
    adapter = prefix(base)
    given = base.key_values(torch.zeros(3))
    adapter.set_key_values(given)
    found = adapter.key_values()
    assert torch.equal(found[:2], given[:2])
    assert torch.equal(found[2:], given[:2])


def test_key_values_of_another_size_are_refused(shape):
    with pytest.raises(CheckpointError, match="key-values to start from has shape"):
        prefix(shape).set_key_values(shape.key_values(torch.zeros(4)))


def test_a_projection_cannot_start_from_key_values(shape):
    adapter = prefix(shape, prefix_projection=True)
    with pytest.raises(ConfigError, match="cannot start from given key-values"):
        adapter.set_key_values(shape.key_values(torch.zeros(3)))


def test_sizes_for_the_config(shape):
    assert prompt(shape).sizes == {"token_dim": HIDDEN, "num_attention_heads": 4}
    assert prefix(shape).sizes == {"token_dim": HEADS * HEAD_DIM, "num_attention_heads": HEADS}
