from __future__ import annotations

import peft
import pytest
import torch

from graft.methods import PrefixTuning, PrefixTuningConfig

from .conftest import HEAD_DIM, HEADS, LAYERS, make_shape


def prefix(shape, **values) -> PrefixTuning:
    return PrefixTuning(PrefixTuningConfig(num_virtual_tokens=3, **values), shape)


@pytest.mark.parametrize("width", [None, 5])
def test_the_projection_is_that_of_peft(shape, width):
    size = HEADS * HEAD_DIM
    theirs = peft.PrefixEncoder(
        peft.PrefixTuningConfig(
            num_virtual_tokens=3,
            prefix_projection=True,
            token_dim=size,
            num_layers=LAYERS,
            encoder_hidden_size=width or size,
        )
    )
    ours = prefix(shape, prefix_projection=True, encoder_hidden_size=width)
    ours.encoder.load_state_dict(theirs.state_dict())
    expected = theirs(torch.arange(3)[None])[0]
    torch.testing.assert_close(ours.rows(), expected, rtol=0, atol=1e-6)


def test_a_prefix_starts_from_real_key_values(shape):
    given = shape.key_values(torch.zeros(3))
    assert torch.equal(prefix(shape, init_weights="vocab").key_values(), given)
    seen = []
    spied = PrefixTuningConfig(num_virtual_tokens=3, init_weights="text", init_text="7 2")
    shape.__dict__["key_values"] = lambda ids: (seen.append(ids.tolist()), given)[1]
    PrefixTuning(spied, shape)
    assert seen == [[7, 2, 7]]


def test_a_prefix_starts_from_real_keys_and_values_as_large_as_real_ones():
    shape = make_shape(layers=4)
    given = shape.key_values(torch.zeros(200))
    shape.__dict__["key_values"] = lambda ids: given * torch.arange(1, 5).view(-1, 1, 1, 1, 1)
    config = PrefixTuningConfig(num_virtual_tokens=200)
    real, own = shape.key_values(torch.zeros(200)), PrefixTuning(config, shape).key_values()
    assert torch.equal(own[:, 0], real[:, 0])
    for mine, theirs in zip(own[:, 1], real[:, 1], strict=True):
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        assert abs(mine.mean()) < 0.1 * mine.std()  # theirs are all positive
    assert not torch.equal(own, PrefixTuning(config, shape).key_values())


def test_a_prefix_starts_from_zero(shape):
    assert prefix(shape, init_weights="zero").rows().abs().max() == 0
    projected = prefix(shape, init_weights="zero", prefix_projection=True)
    assert projected.rows().abs().max() == 0
    assert projected.encoder.embedding.weight.abs().max() > 0


def test_a_prefix_starts_random(shape):
    rows = prefix(shape, init_weights="random").rows()
    assert 0.5 < rows.std() < 1.5
    assert prefix(shape, prefix_projection=True).rows().abs().max() > 0


def test_a_prefix_to_be_loaded_does_not_run_the_model(shape):
    shape.__dict__["key_values"] = None
    assert prefix(shape, inference_mode=True).rows().abs().max() == 0


def test_only_what_peft_knows_of_the_start_is_written():
    def written(**values):
        return PrefixTuningConfig(num_virtual_tokens=3, **values).to_dict()

    assert written(init_weights="zero")["init_weights"] == "zero"
    for values in ({}, {"init_weights": "vocab"}, {"init_weights": "random"}):
        assert written(**values)["init_weights"] is None
    assert "init_text" not in written(init_weights="text", init_text="a")
