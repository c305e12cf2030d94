"""The same weights give the same loss, logits and gradients as in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import graft
from conformance.families import Family

from .cases import CASES, FIVE, LSTM, MODELS, WITH_HEADS, Case, Model, each_pair
from .oracle import (
    PEFT_WARNS,
    assert_same,
    copy_weights,
    gradients,
    make_batch,
    outputs,
    randomise,
)

pytestmark = PEFT_WARNS
NAMED = {case.name: case for case in CASES}


@each_pair
def test_same_weights_same_logits_and_gradients(case: Case, name: str) -> None:
    assert_learns_alike(case, MODELS[name])


def assert_learns_alike(case: Case, model: Model) -> None:
    theirs, ours = case.peft(model), case.graft(model)
    randomise(theirs)
    copy_weights(theirs, ours)
    batch = make_batch(model)

    expected, found = outputs(theirs, batch), outputs(ours, batch)
    expected["loss"].backward()
    found["loss"].backward()

    assert_same(found, expected)
    own, wanted = gradients(ours), gradients(theirs)
    for name in own.keys() & {"embedding.weight"}:  # an encoder-decoder's has dead rows in PEFT
        wanted[name] = wanted[name][: len(own[name])]
    assert_same(own, wanted)
    assert max(grad.abs().max() for grad in own.values()) > 1e-3


def test_a_prefix_on_an_odd_number_of_decoder_layers() -> None:
    settings = {**MODELS["t5"].family.settings, "num_hidden_layers": 3, "num_decoder_layers": 3}
    deep = Family("T5Config", "encoder-decoder", settings)
    model = Model(deep, MODELS["t5"].task, [], [], [])
    assert_learns_alike(NAMED["prefix"], model)


@pytest.mark.parametrize("name", WITH_HEADS)
@pytest.mark.parametrize("case", [NAMED["prompt-random"], NAMED["p-tuning-mlp"], LSTM], ids=str)
def test_virtual_tokens_under_a_head(case: Case, name: str) -> None:
    # Without labels: PEFT's loss counts the virtual tokens as tokens of the text.
    model = MODELS[name]
    theirs, ours = case.peft(model), case.graft(model)
    randomise(theirs)
    copy_weights(theirs, ours)
    ids = make_batch(model)["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_same(outputs(ours, batch), outputs(theirs, batch))


def test_the_kinds_of_tokens_are_those_of_the_text() -> None:
    model = MODELS["bert"]
    theirs, ours = NAMED["prompt-random"].peft(model), NAMED["prompt-random"].graft(model)
    randomise(theirs)
    copy_weights(theirs, ours)
    batch = make_batch(model)
    batch["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    assert_same(outputs(ours, batch), outputs(theirs, batch))


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config"])
@pytest.mark.parametrize("name", FIVE)
def test_default_targets_are_those_of_peft(name: str, kind: str) -> None:
    theirs, ours = (_default_shapes(library, name, kind) for library in (peft, graft))
    if (name, kind) == ("bert", "IA3Config"):
        # The name in PEFT's table, output.dense, is also that of the attention's output.
        theirs = {key: shape for key, shape in theirs.items() if "attention.output" not in key}
    assert ours == theirs


def _default_shapes(library: Any, name: str, kind: str) -> dict[str, torch.Size]:
    config = getattr(library, kind)(task_type=MODELS[name].task.value)
    model = library.get_peft_model(MODELS[name].make(), config)
    return {key: t.shape for key, t in library.get_peft_model_state_dict(model).items()}


def test_a_prompt_starts_from_the_same_text(tmp_path: Path) -> None:
    words = ["<unk>", "say", "yes", "or", "no", ":"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)

    def start(library: Any, count: int) -> torch.Tensor:
        config = library.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=count,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="say yes or no : yes",
            tokenizer_name_or_path=str(tmp_path),
        )
        model = library.get_peft_model(MODELS["llama"].make(), config)
        return library.get_peft_model_state_dict(model)["prompt_embeddings"]

    for count in (3, 6, 14):  # cut, whole, repeated
        assert torch.equal(start(graft, count), start(peft, count))
