"""Outputs have the shapes of the rows given, for every task, and losses count these alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from graft.adapt.model import get_peft_model
from graft.config import TaskType
from graft.errors import ConfigError
from graft.methods import PromptAdapter

from .cases import CASES, Case
from .families import EOS, Family
from .rows import assert_near, batch, make_rows, shapes, train

SPANS = {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([2, 2, 6])}


def test_shapes_and_losses(family: Family, case: Case) -> None:
    for task in family.tasks:
        inputs = {**labelled(family, task), "output_hidden_states": True, "output_attentions": True}
        base = family.model(task)
        base.set_attn_implementation("eager")  # the others give no attentions
        wanted = shapes(base(**inputs))
        if case.is_refused(family, task):
            continue
        model = get_peft_model(base, case.config(family, task_type=task))
        train(model, "default")
        outputs = model(**inputs)
        assert shapes(outputs) == wanted
        if task != TaskType.FEATURE_EXTRACTION:
            assert_near(outputs.loss, loss(task, outputs, inputs))
        as_tuple = model(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert_near(as_tuple[0], outputs[0])


@pytest.mark.only(lambda family, case: family.no_cache)
def test_a_prefix_is_refused_where_there_is_no_cache(family: Family) -> None:
    for task in set(family.no_cache) & set(family.tasks):
        for case in CASES:
            if case.is_refused(family, task):
                base = family.model(task)
                with pytest.raises(ConfigError, match="a prefix has no place"):
                    get_peft_model(base, case.config(family, task_type=task))
                assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())


@pytest.mark.only(lambda family, case: "num_local_experts" in family.settings)
@pytest.mark.only(lambda family, case: not issubclass(case.method, PromptAdapter))
def test_experts_are_balanced_over_the_text(family: Family, case: Case) -> None:
    """The loss that balances experts knows of no prefix; prompts go to experts as text does."""
    model = get_peft_model(family.model(), case.config(family))
    inputs = labelled(family, TaskType.CAUSAL_LM)
    outputs = model(**inputs, output_router_logits=True)
    config = model.config
    wanted = load_balancing_loss_func(
        outputs.router_logits,
        config.num_local_experts,
        config.num_experts_per_tok,
        inputs["attention_mask"],
    )
    assert_near(outputs.aux_loss, wanted)


def labelled(family: Family, task: TaskType) -> dict[str, Tensor]:
    """Three rows, padded on the right, with what `task` is to learn from them."""
    rows = make_rows(3)
    inputs = batch(family, rows, "right")
    real = inputs["attention_mask"].bool()
    if task == TaskType.CAUSAL_LM:
        inputs["labels"] = inputs["input_ids"].masked_fill(~real, -100)
        inputs["labels"][:, 0] = -100  # which virtual tokens predict, and nothing else does
    elif task == TaskType.SEQ_CLS:
        inputs["labels"] = torch.tensor([2, 0, 1])
        last = inputs["attention_mask"].sum(1, keepdim=True) - 1
        inputs["input_ids"].scatter_(1, last, EOS)  # where T5 and BART look
    elif task == TaskType.TOKEN_CLS:
        inputs["labels"] = (inputs["input_ids"] % 3).masked_fill(~real, -100)
    elif task == TaskType.QUESTION_ANS:
        inputs |= SPANS
    if family.kind != "encoder-decoder":
        return inputs
    target = inputs.pop("decoder_input_ids")
    if task == TaskType.SEQ_2_SEQ_LM:
        inputs["labels"] = target.masked_fill(target == 0, -100)
    elif task == TaskType.FEATURE_EXTRACTION:
        inputs["decoder_input_ids"] = target
    return inputs


def loss(task: TaskType, outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The cross entropy of what the outputs say on the rows given."""
    if task == TaskType.QUESTION_ANS:
        start = F.cross_entropy(outputs.start_logits, inputs["start_positions"])
        return (start + F.cross_entropy(outputs.end_logits, inputs["end_positions"])) / 2
    logits, labels = outputs.logits, inputs["labels"]
    if task == TaskType.CAUSAL_LM:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
