"""The same weights give the same loss, logits and gradients as in PEFT."""

from __future__ import annotations

import pytest

from .oracle import (
    CASES,
    MODELS,
    PEFT_WARNS,
    Case,
    assert_same,
    copy_weights,
    gradients,
    make_batch,
    outputs,
    randomise,
)

pytestmark = PEFT_WARNS


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "bert", "t5"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_weights_same_logits_and_gradients(case: Case, name: str) -> None:
    if name == "t5" and case.name == "p-tuning-lstm":
        pytest.skip("PEFT's LSTM also reads the rows that it never uses")
    model = MODELS[name]
    theirs, ours = case.peft(model), case.graft(model)
    randomise(theirs)
    copy_weights(theirs, ours)
    batch = make_batch(model)

    expected, found = outputs(theirs, batch), outputs(ours, batch)
    expected["loss"].backward()
    found["loss"].backward()

    assert_same(found, expected)
    wanted = gradients(theirs)
    own = gradients(ours)
    if name == "t5" and "embedding.weight" in wanted:
        wanted["embedding.weight"] = wanted["embedding.weight"][:5]
    assert_same(own, wanted)
    assert max(grad.abs().max() for grad in own.values()) > 1e-3
