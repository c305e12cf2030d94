from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
)

from graft.adapt import PeftModel
from graft.config import PeftType, TaskType
from graft.errors import ConfigError
from graft.methods import METHODS
from graft.packing import Unpackable
from graft.training.batches import Order, make_batch, split
from graft.training.evaluate import evaluate
from graft.training.lean import lean_layers
from graft.training.learner import Learner
from graft.training.loop import TrainingError
from graft.training.optimizer import trainable_parameters
from graft.training.report import Callback
from graft.training.rounds import Rounds
from graft.training.state import Store
from tiny import tiny_bert, tiny_llama

from .conftest import LM, attach, fit_one, needed_fields, weights

# --- one step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "pieces"), [(3, 4), (5, 3), (1, 12)])
def test_accumulated_steps_equal_one_big_batch(lm_rows, lm_collator, settings, size, pieces):
    """However a step's rows fall into batches, the step is the same."""
    results = []
    for batch_size, accumulation in ((size * pieces, 1), (size, pieces)):
        model = attach(tiny_llama().double())
        same = {
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
        }
        run = fit_one(
            model, lm_rows, None, lm_collator, settings.model_copy(update=same), task_type=LM
        )
        results.append((weights(model), [record["loss"] for record in run.records]))
    (whole, whole_losses), (parts, part_losses) = results
    # transformers computes the loss in fp32, whatever the model's dtype.
    assert part_losses == pytest.approx(whole_losses, rel=1e-6)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-5, atol=1e-5)
    if size > 1:  # rows of different lengths: a mean of the batches' means is something else
        order = Order(len(lm_rows), size * pieces, settings.seed)
        batches = [
            make_batch([lm_rows[i] for i in piece], lm_collator, LM)
            for piece in split(order.step(0), size)
        ]
        model = attach(tiny_llama().double())
        means = [model(**batch.inputs).loss.item() for batch in batches]
        assert abs(sum(means) / len(means) - whole_losses[0]) > 1e-4


def test_steps_equal_a_loop_written_out(lm_rows, lm_collator, settings, monkeypatch):
    """On padded batches, as the model's own forward has them, to the last digits."""

    def unpackable(model):
        raise Unpackable("padded here")

    monkeypatch.setattr("graft.training.forward.proven_forward", unpackable)
    settings = settings.model_copy(update={"max_grad_norm": 0.05, "warmup_steps": 2})
    model, other = attach(tiny_llama().double()), attach(tiny_llama().double())
    run = fit_one(model, lm_rows, None, lm_collator, settings, task_type=LM)

    order = Order(len(lm_rows), 4, settings.seed)
    parameters = list(trainable_parameters(other).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for step in range(6):
        lr = 1e-2 * (step / 2 if step < 2 else (6 - step) / 4)
        batch = make_batch([lm_rows[i] for i in order.step(step)], lm_collator, LM)
        with lean_layers(other):  # in float64 the order of float32's sums in norms would show
            loss = other(**batch.inputs).loss
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        assert run.records[step]["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert run.records[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-9)
        assert run.records[step]["learning_rate"] == pytest.approx(lr, rel=1e-9)  # of this step
    for name, weight in weights(other).items():
        torch.testing.assert_close(weights(model)[name], weight, rtol=1e-9, atol=1e-12)


def test_the_logged_loss_is_the_mean_over_the_tokens_since_the_last_line(
    lm_rows, lm_collator, settings
):
    fine = fit_one(attach(tiny_llama()), lm_rows, None, lm_collator, settings, task_type=LM).records
    coarse = fit_one(
        attach(tiny_llama()),
        lm_rows,
        None,
        lm_collator,
        settings.model_copy(update={"logging_steps": 4}),
        task_type=LM,
    ).records
    order = Order(len(lm_rows), 4, settings.seed)
    counts = [
        make_batch([lm_rows[i] for i in order.step(s)], lm_collator, LM).targets for s in range(6)
    ]
    assert [record["step"] for record in coarse] == [4, 6]
    for record, steps in zip(coarse, (range(4), range(4, 6)), strict=True):
        total = sum(fine[s]["loss"] * counts[s] for s in steps)
        assert record["loss"] == pytest.approx(total / sum(counts[s] for s in steps))


@pytest.mark.parametrize("method", [kind.value.lower() for kind in METHODS])
def test_only_the_adapter_learns(lm_rows, lm_collator, settings, method):
    base = tiny_llama()
    before = {name: p.clone() for name, p in base.state_dict().items()}
    model = attach(base, method, **needed_fields(method))
    start = weights(model)
    settings = settings.model_copy(update={"learning_rate": None})
    run = fit_one(model, lm_rows, None, lm_collator, settings, task_type=LM)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in weights(model).items())
    peak = max(record["learning_rate"] for record in run.records)
    assert peak == METHODS[PeftType(method.upper())].learning_rate  # the first step's


def test_counts(lm_rows, lm_collator, settings):
    run = fit_one(attach(tiny_llama()), lm_rows, None, lm_collator, settings, task_type=LM)
    order = Order(len(lm_rows), 4, settings.seed)
    seen = [i for step in range(6) for i in order.step(step)]
    assert run.progress.rows == len(seen)
    assert run.progress.tokens == sum(len(lm_rows[i]["input_ids"]) for i in seen)
    assert run.progress.step == 6
    assert run.peak_memory_gib is None or run.peak_memory_gib > 0


@pytest.mark.parametrize("before", [False, True])
def test_gradient_checkpointing_changes_nothing(lm_rows, lm_collator, settings, before):
    seen = []

    class Watch(Callback):
        def on_step(self, step: int) -> None:
            seen.append(checkpointed.base_model.is_activation_checkpointing)

    plain, checkpointed = attach(tiny_llama()), attach(tiny_llama())
    fit_one(plain, lm_rows, None, lm_collator, settings, task_type=LM)
    assert not plain.base_model.is_activation_checkpointing
    if before:
        checkpointed.gradient_checkpointing_enable()
    on = settings.model_copy(update={"gradient_checkpointing": True})
    fit_one(checkpointed, lm_rows, None, lm_collator, on, task_type=LM, callbacks=[Watch()])
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(checkpointed)[name], weight)
    assert seen == [True] * 6
    assert checkpointed.base_model.is_activation_checkpointing is before  # as it was found


@pytest.mark.parametrize("largest_first", [False, True])
def test_gradients_of_before_are_of_no_step(lm_rows, lm_collator, settings, largest_first):
    fresh, used = attach(tiny_llama()), attach(tiny_llama())
    for parameter in trainable_parameters(used).values():
        parameter.grad = torch.ones_like(parameter)
    fit_one(fresh, lm_rows, None, lm_collator, settings, task_type=LM)
    options = {"task_type": LM, "largest_first": largest_first}
    fit_one(used, lm_rows, None, lm_collator, settings, **options)
    for name, weight in weights(fresh).items():
        assert torch.equal(weights(used)[name], weight)


def test_the_largest_batch_is_tried_as_steps_are_taken(lm_rows, lm_collator, settings, monkeypatch):
    """Else the memory it takes would be another's, and what it leaves would be learned from."""
    model = attach(tiny_llama())
    how = []

    def largest(rounds: Rounds, learners: list[Learner]) -> None:
        how.append("forward" in vars(model.base_model.model.norm))
        with monkeypatch.context() as patched:
            patched.setattr(Tensor, "backward", backward)
            own(rounds, learners)

    def backward(loss: Tensor) -> None:
        for parameter in trainable_parameters(model).values():
            parameter.grad = torch.ones_like(parameter)
        raise torch.OutOfMemoryError("no memory")

    own = Rounds.try_largest
    monkeypatch.setattr(Rounds, "try_largest", largest)
    with pytest.raises(torch.OutOfMemoryError):
        fit_one(model, lm_rows, None, lm_collator, settings, task_type=LM, largest_first=True)
    assert how == [True]
    assert "forward" not in vars(model.base_model.model.norm)
    assert all(parameter.grad is None for parameter in trainable_parameters(model).values())
    assert not model.training


# --- evaluation -------------------------------------------------------------------------------


def test_evaluates_the_base_model_first_and_the_adapter_last(lm_rows, lm_collator, settings):
    model = attach(tiny_llama())
    run = fit_one(model, lm_rows[5:], lm_rows[:5], lm_collator, settings, task_type=LM)
    cpu = torch.device("cpu")
    before = evaluate(tiny_llama(), lm_rows[:5], lm_collator, LM, 8, cpu)
    after = evaluate(model, lm_rows[:5], lm_collator, LM, 8, cpu)
    assert run.progress.eval_before == pytest.approx(before)
    assert run.progress.eval_last == pytest.approx(after)
    assert run.records[0] == {
        "step": 0,
        "epoch": 0.0,
        **{f"eval_{name}": value for name, value in run.progress.eval_before.items()},
    }


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_once_the_evaluation_no_longer_gets_better(
    tmp_path, class_rows, class_collator, settings, patience
):
    """Evaluated on the opposite of what it learns, the loss rises sooner or later."""
    opposite = [{**row, "labels": 1 - row["labels"]} for row in class_rows]
    settings = settings.model_copy(
        update={"max_steps": 60, "eval_steps": 2, "early_stopping_patience": patience}
    )
    run = fit_one(
        attach(tiny_bert(), task_type=TaskType.SEQ_CLS),
        class_rows,
        opposite,
        class_collator,
        settings,
        task_type=TaskType.SEQ_CLS,
        store=Store(tmp_path),
    )
    losses = [r["eval_loss"] for r in run.records if "eval_loss" in r and r["step"]]
    best = losses.index(min(losses))
    assert run.stopped_early
    assert run.progress.step < 60
    assert len(losses) == best + 1 + patience
    assert run.progress.best_step == 2 * (best + 1)
    assert (tmp_path / f"checkpoint-{run.progress.step}").is_dir()


def test_ends_with_the_best_adapter_where_asked(tmp_path, class_rows, class_collator, settings):
    opposite = [{**row, "labels": 1 - row["labels"]} for row in class_rows]
    changes = {"max_steps": 20, "eval_steps": 2, "load_best_model_at_end": True}
    model = attach(tiny_bert(), task_type=TaskType.SEQ_CLS)
    run = fit_one(
        model,
        class_rows,
        opposite,
        class_collator,
        settings.model_copy(update=changes),
        task_type=TaskType.SEQ_CLS,
        store=Store(tmp_path),
    )
    assert run.progress.eval_best["loss"] < run.progress.eval_last["loss"]
    cpu = torch.device("cpu")
    now = evaluate(model, opposite, class_collator, TaskType.SEQ_CLS, 8, cpu)
    assert now == pytest.approx(run.progress.eval_best)
    on_disk = PeftModel.from_pretrained(tiny_bert(), tmp_path / "best", is_trainable=True)
    for name, weight in weights(model).items():
        assert torch.equal(weights(on_disk)[name], weight)


# --- what cannot work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [{"early_stopping_patience": 2}, {"load_best_model_at_end": True}]
)
def test_settings_that_need_evaluation_rows(tmp_path, lm_rows, lm_collator, settings, setting):
    store = Store(tmp_path / "out")
    settings = settings.model_copy(update=setting)
    with pytest.raises(ConfigError, match=next(iter(setting))):
        fit_one(
            attach(tiny_llama()), lm_rows, None, lm_collator, settings, task_type=LM, store=store
        )
    assert not (tmp_path / "out").exists()


def test_nothing_to_train(lm_rows, lm_collator, settings):
    model = attach(tiny_llama()).requires_grad_(False)
    with pytest.raises(ConfigError, match="trainable"):
        fit_one(model, lm_rows, None, lm_collator, settings, task_type=LM)
    with pytest.raises(ConfigError, match="no rows"):
        fit_one(attach(tiny_llama()), [], None, lm_collator, settings, task_type=LM)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, lm_rows, lm_collator, settings):
    class Poison(Callback):
        def on_step(self, step: int) -> None:
            if step == 3:
                with torch.no_grad():
                    next(iter(trainable_parameters(model).values())).fill_(math.nan)

    settings = settings.model_copy(update={"save_steps": 1, "logging_steps": 2})
    model = attach(tiny_llama())
    with pytest.raises(TrainingError, match=r"since step 4\..*learning rate"):
        fit_one(
            model,
            lm_rows,
            None,
            lm_collator,
            settings,
            task_type=LM,
            store=Store(tmp_path),
            callbacks=[Poison()],
        )
    assert not (tmp_path / "checkpoint-4").exists()


@pytest.mark.parametrize("largest_first", [False, True])
def test_layers_that_a_model_does_not_call(lm_rows, lm_collator, settings, largest_first):
    """Mamba reads the biases of two of its layers, which it never runs."""
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    model = attach(MambaForCausalLM(MambaConfig(**sizes)), "bitfit")
    options = {"task_type": LM, "largest_first": largest_first}
    with pytest.raises(ConfigError, match=r"does not call .*conv1d, .*Name other"):
        fit_one(model, lm_rows, None, lm_collator, settings, **options)


def test_masks_made_in_front_of_the_language_model():
    text = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    base = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    model = attach(base, "prefix_tuning", num_virtual_tokens=3)
    ids = torch.arange(3, 9)[None]
    with pytest.raises(ConfigError, match="makes masks in front of its language model"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
