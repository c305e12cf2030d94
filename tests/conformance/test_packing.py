"""Packed rows give the loss and the gradients of padded ones, for any method and any mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graft.adapt.model import PeftModel
from graft.config import TaskType
from graft.methods import Lora
from graft.packing import (
    PackedForward,
    PackedLayers,
    PackedPairs,
    Unpackable,
    proven_forward,
    proven_layers,
)

from .cases import Case
from .conftest import Crowds
from .families import EOS, Family
from .rows import assert_near, attach, batch, make_rows, score, taken_gradients

LORA = Case(Lora)
UNPACKABLE = ("Bloom",)  # its attention is its own
WEIGHTS = (1.0, 0.5, 0.0, 2.0)


def packs(family: Family, case: Case | None) -> bool:
    return family.kind != "encoder" and family.name not in UNPACKABLE


PACKS = pytest.mark.only.with_args(packs)


def labels_of(rows: Sequence[Tensor]) -> list[Tensor]:
    """Every row learns all but its first tokens; each third row its end alone."""
    out = [row.clone() for row in rows]
    for index, labels in enumerate(out):
        labels[: len(labels) - 1 if index % 3 == 2 else 1] = -100
    return out


def targets_of(rows: Sequence[Tensor]) -> list[Tensor]:
    """What the decoder behind an encoder learns: another row's labels, some with an open end."""
    out = labels_of([row.flip(0) for row in [*rows[1:], rows[0]]])
    out[1] = torch.cat([out[1], torch.tensor([-100, -100])])
    return out


def padded_losses(
    model: PeftModel, family: Family, rows: Sequence[Tensor], names: Sequence[str] | None
) -> Tensor:
    """Sum of the cross entropies of each row [B], from padded logits."""
    inputs = batch(family, rows, "right")
    if family.kind == "encoder-decoder":
        labels = torch.nn.utils.rnn.pad_sequence(targets_of(rows), True, -100)
        base: Any = model.base_model
        inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
        logits = model(**inputs, adapter_names=names).logits
    else:
        labels = torch.nn.utils.rnn.pad_sequence(labels_of(rows), True, -100)[:, 1:]
        logits = model(**inputs, adapter_names=names).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return each.sum(1)


def assert_packed_equals_padded(
    model: PeftModel, family: Family, count: int, names: Sequence[str] | None = None
) -> None:
    rows = make_rows(count)
    weights = [WEIGHTS[index % len(WEIGHTS)] for index in range(count)]
    wanted = padded_losses(model, family, rows, names)
    (wanted * torch.tensor(weights)).sum().backward()
    gradients = taken_gradients(model)
    if family.kind == "encoder-decoder":
        total, each = PackedPairs(model).loss(rows, targets_of(rows), weights, names)
    else:
        total, each = PackedForward(model).loss(rows, labels_of(rows), weights, names)
    assert_near(each, wanted.detach())
    assert_near(total.detach(), (wanted.detach() * torch.tensor(weights)).sum())
    total.backward()
    packed = taken_gradients(model)
    assert packed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_near(packed[name], gradient)


@PACKS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_padded(family: Family, case: Case, checkpointing: bool) -> None:
    model = attach(family.model(), family, [case]).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    assert_packed_equals_padded(model, family, 4)


@PACKS
def test_mixed_rows(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    model, names = crowd
    assert_packed_equals_padded(model.train(), family, len(names), names)


HEADS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.FEATURE_EXTRACTION)
TWO_WAYS = ("DebertaV2", "Bloom")  # positions of pairs and distances, made for padded rows


def packs_layers(family: Family, case: Case | None) -> bool:
    return family.name not in TWO_WAYS


def tasks_of(family: Family) -> list[TaskType]:
    """Those of `HEADS` that a model reads ids alone for; T5's bare one wants the decoder's too."""
    bare = TaskType.FEATURE_EXTRACTION
    return [t for t in HEADS if t in family.tasks and (t, family.name) != (bare, "T5")]


PACKS_LAYERS = pytest.mark.only.with_args(packs_layers)


def assert_layers_packed_equal_padded(
    model: PeftModel, family: Family, count: int, names: Sequence[str] | None = None
) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # of heads, which some families' configs set
            module.p = 0.0
    rows = make_rows(count)
    for row in rows:
        row[-1] = EOS  # an encoder-decoder classifies by it
    inputs = batch(family, rows, "right")
    inputs.pop("decoder_input_ids", None)  # it reads the encoder's
    if family.kind == "decoder":
        inputs["use_cache"] = False  # pyright: ignore[reportArgumentType]
    wanted = results(model(**inputs, adapter_names=names), inputs["attention_mask"])
    score(wanted).backward()
    gradients = taken_gradients(model)
    with PackedLayers(model).packing(inputs["attention_mask"], names):
        packed = results(model(**inputs, adapter_names=names), inputs["attention_mask"])
    assert_near(packed, wanted)
    score(packed).backward()
    taken = taken_gradients(model)
    assert taken.keys() == gradients.keys()
    for name, gradient in taken.items():
        assert_near(gradient, gradients[name])


def results(outputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Logits or hidden states; those of pads are nobody's."""
    first = next(value for value in outputs.values() if isinstance(value, Tensor))
    return first[mask.bool()] if first.shape[:2] == mask.shape else first


@PACKS_LAYERS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_layers_equal_padded_ones(family: Family, case: Case, checkpointing: bool) -> None:
    for task in HEADS:
        if task in tasks_of(family) and not case.is_refused(family, task):
            model = attach(family.model(task), family, [case], task).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            assert_layers_packed_equal_padded(model, family, 4)


@PACKS_LAYERS
def test_mixed_rows_through_packed_layers(family: Family, crowd_of: Crowds) -> None:
    for task in tasks_of(family):
        model, names = crowd_of(task)
        assert_layers_packed_equal_padded(model.train(), family, len(names), names)


@pytest.mark.only(lambda family, case: family.kind != "encoder")
def test_a_language_model_is_tried_before_it_is_packed(family: Family) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = attach(family.model().to(dtype), family, [LORA]).train()
        if family.name in UNPACKABLE:
            with pytest.raises(Unpackable, match=family.name):
                proven_forward(model)
        else:
            assert proven_forward(model).model is model
        assert model.training


def test_layers_are_tried_before_they_are_packed(family: Family) -> None:
    for task in tasks_of(family):
        model = attach(family.model(task), family, [LORA], task)
        if packs_layers(family, None):
            assert proven_layers(model).model is model
        else:
            with pytest.raises(Unpackable, match=family.name):
                proven_layers(model)
