"""`generate` gives what decoding without any cache gives, token for token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graft.adapt.model import PeftModel
from graft.errors import ConfigError
from graft.methods import PrefixAdapter

from .cases import Case
from .families import EOS, PAD, Family
from .rows import assert_near, attach, batch, make_rows, shapes

pytestmark = pytest.mark.only(lambda family, case: family.generates)

NEW = 4  # tokens
BEAMS = {"num_beams": 3, "num_return_sequences": 2}


@torch.no_grad()
def decoded(family: Family, model: PeftModel, row: Tensor, **how: object) -> list[int]:
    """The new tokens of one row: the likeliest each time, from a forward over everything so far."""
    inputs = {"input_ids": row[None]}
    grown = "input_ids"
    if family.kind == "encoder-decoder":
        grown = "decoder_input_ids"
        inputs[grown] = torch.tensor([[model.config.decoder_start_token_id]])
    new: list[int] = []
    while len(new) < NEW and EOS not in new:
        logits = model(**inputs, use_cache=False, **how).logits
        new.append(int(logits[0, -1].argmax()))
        inputs[grown] = torch.cat([inputs[grown], torch.tensor([[new[-1]]])], dim=1)
    return new


def prompts(family: Family, rows: list[Tensor]) -> dict[str, Tensor]:
    """What `generate` takes."""
    inputs = batch(family, rows)
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def assert_tokens(out: Tensor, wanted: list[list[int]]) -> None:
    """`out` ends in the new tokens `wanted`, padded where a row ended before others."""
    longest = max(len(row) for row in wanted)
    assert out[:, -longest:].tolist() == [row + [PAD] * (longest - len(row)) for row in wanted]


def embedded(family: Family, model: PeftModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows, given as embeddings."""
    owner = model.base_model.get_encoder() if family.kind == "encoder-decoder" else model.base_model
    embeddings = owner.get_input_embeddings()(inputs["input_ids"])
    return {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}


def test_greedy_equals_decoding_without_a_cache(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    rows = make_rows(3)
    inputs = prompts(family, rows)
    wanted = [decoded(family, model, row) for row in rows]
    out = model.generate(**inputs, max_new_tokens=NEW)
    assert_tokens(out, wanted)
    if family.kind == "decoder":
        assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert_tokens(model.generate(**embedded(family, model, inputs), max_new_tokens=NEW), wanted)
    if issubclass(case.method, PrefixAdapter):
        for setting in ({"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
            with pytest.raises(ConfigError, match="a prefix"):
                model.generate(**inputs, max_new_tokens=NEW, **setting)
    else:
        assert_tokens(model.generate(**inputs, max_new_tokens=NEW, use_cache=False), wanted)


def test_static_cache(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    rows = make_rows(2)
    options = {"max_new_tokens": NEW, "cache_implementation": "static", "disable_compile": True}
    if issubclass(case.method, PrefixAdapter):
        with pytest.raises(ConfigError, match="cannot take a prefix"):
            model.generate(**prompts(family, rows), **options)
    else:
        wanted = [decoded(family, model, row) for row in rows]
        assert_tokens(model.generate(**prompts(family, rows), **options), wanted)


def test_beams_equal_beams_of_each_row_alone(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    rows = make_rows(2)
    together = model.generate(**prompts(family, rows), max_new_tokens=NEW, **BEAMS)
    for index, row in enumerate(rows):
        alone = model.generate(**prompts(family, [row]), max_new_tokens=NEW, **BEAMS)
        own = together[2 * index : 2 * index + 2]
        assert ended(own) == ended(alone)


def test_mixed_rows(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    model, names = crowd
    rows = make_rows(len(names))
    inputs = prompts(family, rows)
    wanted = [
        decoded(family, model, row, adapter_names=[name])
        for row, name in zip(rows, names, strict=True)
    ]
    assert_tokens(model.generate(**inputs, max_new_tokens=NEW, adapter_names=names), wanted)
    given = embedded(family, model, inputs)
    assert_tokens(model.generate(**given, max_new_tokens=NEW, adapter_names=names), wanted)
    beams = model.generate(**inputs, max_new_tokens=NEW, adapter_names=names, **BEAMS)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        alone = model.generate(
            **prompts(family, [row]), max_new_tokens=NEW, adapter_names=[name], **BEAMS
        )
        assert ended(beams[2 * index : 2 * index + 2]) == ended(alone)


def test_all_outputs_have_the_shapes_of_the_rows(family: Family, case: Case) -> None:
    inputs = prompts(family, make_rows(3))
    how = {
        "max_new_tokens": 2,
        "min_new_tokens": 2,
        "output_hidden_states": True,
        "output_attentions": True,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    for beams in (1, 2):
        base = family.model()
        base.set_attn_implementation("eager")  # the others give no attentions
        wanted = shapes(base.generate(**inputs, num_beams=beams, **how))
        model = attach(base, family, [case])
        given = shapes(model.generate(**inputs, num_beams=beams, **how))
        if "sliding_window" in family.settings:  # a prefix's cache does not forget
            given["attentions"] = wanted["attentions"]
        assert given == wanted


@torch.no_grad()
def test_going_on_from_a_cache(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    """Step by step through `forward`, with the cache that it gave."""
    model, names = crowd
    rows = make_rows(len(names))
    how = {"adapter_names": names, "use_cache": True}
    inputs = prompts(family, rows)
    grown = "input_ids"
    if family.kind == "encoder-decoder":
        grown = "decoder_input_ids"
        start = model.config.decoder_start_token_id
        inputs[grown] = torch.full((len(rows), 1), start)
    new = []
    for _ in range(NEW):
        outputs = model(**inputs, **how)
        new.append(outputs.logits[:, -1].argmax(-1))
        inputs[grown] = new[-1][:, None]
        inputs["cache"] = outputs.cache
        if family.kind == "decoder":
            one = torch.ones(len(rows), 1, dtype=torch.long)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], one], dim=1)
            inputs.pop("position_ids", None)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        wanted = decoded(family, model, row, adapter_names=[name])
        assert [int(step[index]) for step in new][: len(wanted)] == wanted


def test_scores_of_beams_stand_in_the_order_of_rows(
    family: Family, crowd: tuple[PeftModel, list[str]]
) -> None:
    model, names = crowd
    inputs = prompts(family, make_rows(len(names)))
    out = model.generate(
        **inputs,
        adapter_names=names,
        max_new_tokens=NEW,
        output_scores=True,
        return_dict_in_generate=True,
        **BEAMS,
    )
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    length = (out.beam_indices >= 0).sum(1)
    assert_near(steps.sum(1) / length, out.sequences_scores)


def ended(out: Tensor) -> list[list[int]]:
    """Sequences without pads at either end."""
    return [[i for i in row if i != PAD] for row in out.tolist()]
