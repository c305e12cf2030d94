"""Encoder-decoders on packed rows: what the conformance suite's two families do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from graft import LoraConfig, PeftModel
from graft.packing import PackedPairs, Unpackable, proven_forward

LIKE_T5 = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_heads": 4,
           "dropout_rate": 0.0, "decoder_start_token_id": 0}  # fmt: skip
LIKE_BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 24,
             "dropout": 0.0, "decoder_start_token_id": 2, "forced_eos_token_id": None,
             "max_position_embeddings": 64}  # fmt: skip


def model(kind: str, settings: dict[str, Any], adapters: int = 1) -> PeftModel:
    """A tiny one with a LoRA adapter or two that do something."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, pad_token_id=0, eos_token_id=1, **settings
    )
    made = PeftModel(transformers.AutoModelForSeq2SeqLM.from_config(config))
    for name in "ab"[:adapters]:
        made.add_adapter(name, LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"))
    made.set_adapter("a")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("kind", ["MT5", "UMT5"])
def test_kin_of_t5_are_packed(kind):
    assert isinstance(proven_forward(model(kind, LIKE_T5)), PackedPairs)


@pytest.mark.parametrize("kind", ["MBart", "Marian", "M2M100"])
def test_kin_of_bart_are_packed(kind):
    assert isinstance(proven_forward(model(kind, LIKE_BART)), PackedPairs)


def test_rows_that_would_see_each_other_are_not_packed():
    # Its attention is its own and looks at blocks of the whole sequence.
    with pytest.raises(Unpackable, match="packed rows see each other"):
        proven_forward(model("BigBirdPegasus", LIKE_BART))


def rows(*lengths: int) -> list[Tensor]:
    return [torch.randint(3, 60, (length,)) for length in lengths]


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_as_many_tokens_in_the_decoder_as_in_the_encoder(kind):
    # The router tells them apart by their number, which is the same here in other groups.
    made = model(kind, LIKE_T5 if kind == "T5" else LIKE_BART, adapters=2)
    names = ["a", "b"]
    ids, labels = rows(5, 2), rows(3, 4)
    _, got = PackedPairs(made).loss(ids, labels, adapter_names=names)
    for index, name in enumerate(names):
        out = made(input_ids=ids[index][None], labels=labels[index][None], adapter_names=[name])
        assert got[index].item() == pytest.approx(out.loss.item() * len(labels[index]), rel=1e-5)


def test_the_head_sees_labelled_tokens_alone():
    made = model("T5", LIKE_T5)
    seen: list[tuple[int, ...]] = []
    head = made.base_model.lm_head
    head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[:2])))
    labels = rows(6, 5)
    labels[0][:4] = -100
    PackedPairs(made).loss(rows(4, 7), labels)
    assert sum(count for shape in seen[1:] for count in shape[1:]) == 2 + 5 + 1  # and one, tried
    assert seen[0] == (2, 0)


def test_a_row_without_labels_adds_nothing():
    made = model("T5", LIKE_T5)
    labels = rows(3, 4)
    labels[1][:] = -100
    total, each = PackedPairs(made).loss(rows(5, 3), labels)
    assert each[1] == 0.0
    assert total.item() == pytest.approx(each[0].item())
