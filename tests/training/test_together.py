"""Adapters that are trained together end where each would have ended alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from graft.adapt import PeftModel
from graft.config import PeftType, TaskType
from graft.data.collate import Collator
from graft.methods import METHODS, make_config
from graft.training.attachment import attach
from graft.training.config import TrainConfig
from graft.training.learner import Run
from graft.training.loop import FitResult, Loop, TrainingError, fit
from graft.training.state import Store
from tiny import SENTENCES, make_tokenizer, tiny_bert, tiny_llama

from .conftest import StopAt, needed_fields
from .test_run import Notes

LM = TaskType.CAUSAL_LM
KINDS = [kind.lower() for kind in METHODS]
# Of each method an adapter with settings unlike those of the others.
OWN = {
    "lora": ({"r": 3, "target_modules": "all-linear", "lora_dropout": 0.2}, {"seed": 1}),
    "ia3": ({}, {"per_device_train_batch_size": 3, "learning_rate": 3e-2, "seed": 2}),
    "bitfit": ({}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "seed": 3}),
    "prompt_tuning": ({}, {"max_steps": 4, "warmup_steps": 2, "seed": 4}),
    "p_tuning": ({"encoder_dropout": 0.3}, {"weight_decay": 0.1, "seed": 5}),
    "prefix_tuning": ({}, {"lr_scheduler_type": "cosine", "adam_beta1": 0.8, "seed": 6}),
}


def run_of(kind: str, task_type: TaskType, rows: list[dict], **changes) -> Run:
    fields, settings = OWN[kind]
    own = {**needed_fields(kind), **fields}
    common = {"learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1}
    return Run(
        rows,
        rows[:4],
        TrainConfig(**{"per_device_train_batch_size": 4, **common, **settings, **changes}),
        make_config(kind, task_type=task_type, **own),
    )


def attached(base, runs: dict[str, Run]) -> PeftModel:
    model = PeftModel(base)
    for name, run in runs.items():
        attach(model, run.config, run.settings.seed, name)
    return model


def weights(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.adapter(name).named_parameters()}


Ends = dict[str, tuple[dict[str, torch.Tensor], FitResult]]


def together(make_base, runs: dict[str, Run], task_type=LM, **settings) -> Ends:
    model = attached(make_base(), runs)
    first, *_ = runs
    runs[first] = replace(runs[first], settings=runs[first].settings.model_copy(update=settings))
    results = fit(model, runs, Collator(make_tokenizer(), task_type), task_type=task_type)
    return {name: (weights(model, name), results[name]) for name in runs}


def alone(make_base, runs: dict[str, Run], task_type=LM) -> Ends:
    ends: Ends = {}
    for name, run in runs.items():
        model = attached(make_base(), {"default": run})
        model.set_adapter("default")
        result = fit(model, run, Collator(make_tokenizer(), task_type), task_type=task_type)[""]
        ends[name] = weights(model, "default"), result
    return ends


def assert_same(one: Ends, other: Ends, tolerance: float, of_weights: float = 2e-5) -> None:
    for name, (own, result) in one.items():
        theirs, their_result = other[name]
        assert result.progress.step == their_result.progress.step
        assert result.progress.tokens == their_result.progress.tokens
        for field in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            mine, its = (
                [r[field] for r in x.records if field in r] for x in (result, their_result)
            )
            assert mine == pytest.approx(its, rel=tolerance, abs=1e-12), (name, field)
            assert mine
        for key, value in own.items():
            torch.testing.assert_close(
                value, theirs[key], rtol=0, atol=of_weights, msg=lambda text, key=key: key + text
            )


@pytest.fixture
def other_rows(tokenizer) -> list[dict]:
    """Longer rows, and fewer."""
    texts = [" ".join(pair) for pair in zip(SENTENCES[:6], SENTENCES[6:], strict=False)]
    ids = [tokenizer(text)["input_ids"] + [2] for text in texts]
    return [{"input_ids": own, "labels": own} for own in ids]


@pytest.mark.parametrize("pair", [*itertools.combinations(KINDS, 2)], ids="-".join)
def test_every_pair_of_methods(pair, lm_rows, other_rows):
    runs = {
        kind: run_of(kind, LM, rows) for kind, rows in zip(pair, (lm_rows, other_rows), strict=True)
    }
    assert_same(together(tiny_llama, dict(runs)), alone(tiny_llama, runs), 2e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"tokens_per_pass": 1}, {"tokens_per_pass": 40, "gradient_checkpointing": True}],
)
def test_all_six_of_different_ranks_batches_and_data(settings, lm_rows, other_rows):
    rows = itertools.cycle([lm_rows, other_rows])
    runs = {kind: run_of(kind, LM, next(rows)) for kind in KINDS}
    assert_same(together(tiny_llama, dict(runs), **settings), alone(tiny_llama, runs), 2e-5)


def test_nothing_but_rounding_differs(lm_rows, other_rows):
    """In fp64, which GPT-2 keeps throughout, the weights agree far below what fp32 rounds."""

    def base():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=make_tokenizer().vocab_size + 10,
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
        )
        return GPT2LMHeadModel(config).double()

    rows = itertools.cycle([lm_rows, other_rows])
    runs = {kind: run_of(kind, LM, next(rows)) for kind in KINDS}
    assert_same(together(base, dict(runs)), alone(base, runs), 1e-6, of_weights=1e-10)


@pytest.mark.parametrize("packs", [True, False])
def test_classifiers_each_with_a_head_of_its_own(packs, class_rows, monkeypatch):
    """Padded passes are shared too, but by adapters whose dropout is not over padded rows."""
    if not packs:
        monkeypatch.setattr("graft.training.forward.proven_layers", _unpackable)
    task = TaskType.SEQ_CLS
    kinds = ("lora", "ia3", "prompt_tuning", "prefix_tuning", "p_tuning", "bitfit")
    runs = {kind: run_of(kind, task, class_rows) for kind in kinds}
    assert_same(together(_classifier, dict(runs), task), alone(_classifier, runs, task), 2e-5)


def test_rows_too_long_side_by_side_take_turns(class_rows):
    """60 tokens of one, a prompt and a prefix of 3 are more than BERT's 64 positions."""
    task = TaskType.SEQ_CLS
    long = [{**row, "input_ids": (row["input_ids"] * 60)[:60]} for row in class_rows]
    runs = {
        "lora": run_of("lora", task, long),
        "prompt_tuning": run_of("prompt_tuning", task, class_rows),
        "prefix_tuning": run_of("prefix_tuning", task, class_rows),
    }
    notes = Notes()
    model = attached(_classifier(), runs)
    collate = Collator(make_tokenizer(), task)
    results = fit(model, runs, collate, task_type=task, callbacks=[notes])
    assert "6 virtual tokens and a row of 60 tokens, as lora has, are more than" in notes.texts[0]
    ends = {name: (weights(model, name), results[name]) for name in runs}
    assert_same(ends, alone(_classifier, runs, task), 2e-5)


def _classifier():
    return tiny_bert()


def _unpackable(model):
    from graft.packing import Unpackable

    raise Unpackable("not here")


def test_one_that_diverges_leaves_and_the_others_go_on(lm_rows):
    runs = {kind: run_of(kind, LM, lm_rows) for kind in ("ia3", "prefix_tuning")}
    bad = run_of("lora", LM, lm_rows, learning_rate=1e20, max_grad_norm=0.0)
    ends = together(tiny_llama, {"bad": bad, **runs})
    assert "no number any more" in ends["bad"][1].failure
    assert ends["bad"][1].progress.step < 6
    others = {kind: end for kind, end in ends.items() if kind != "bad"}
    assert_same(others, alone(tiny_llama, runs), 2e-5)


def test_a_step_that_float32_cannot_hold_ends_one_adapter(lm_rows):
    """AdamW divides the learning rate by 1 - adam_beta1."""
    runs = {
        "bad": run_of(
            "lora", LM, lm_rows, learning_rate=1e30, adam_beta1=1 - 1e-13, logging_steps=6
        ),
        "good": run_of("ia3", LM, lm_rows),
    }
    ends = together(tiny_llama, dict(runs))
    assert "no number any more since step 1." in ends.pop("bad")[1].failure
    assert_same(ends, alone(tiny_llama, {"good": runs["good"]}), 2e-5)


def test_a_run_whose_adapters_all_diverge_fails(lm_rows):
    runs = {
        name: run_of("lora", LM, lm_rows, learning_rate=1e20, max_grad_norm=0.0)
        for name in ("a", "b")
    }
    with pytest.raises(TrainingError, match="no number any more"):
        together(tiny_llama, runs)


def test_each_stops_by_its_own_evaluation(lm_rows):
    patient = {"early_stopping_patience": 1, "eval_steps": 1, "load_best_model_at_end": True}
    runs = {
        "stops": run_of("ia3", LM, lm_rows, learning_rate=2.0, **patient),
        "goes_on": run_of("lora", LM, lm_rows),
    }
    ends = together(tiny_llama, dict(runs))
    assert ends["stops"][1].stopped_early
    assert ends["stops"][1].progress.step < 6
    assert ends["goes_on"][1].progress.step == 6
    assert_same(ends, alone(tiny_llama, runs), 2e-5)


@pytest.mark.parametrize("stop", [2, 4])
def test_resumed_as_a_whole_bit_for_bit(tmp_path, lm_rows, other_rows, stop):
    """A run that stops after a checkpoint and goes on is the one that never stopped."""
    rows = itertools.cycle([lm_rows, other_rows])
    runs = {kind: run_of(kind, LM, next(rows), save_steps=2) for kind in KINDS}
    collate = Collator(make_tokenizer(), LM)
    whole = attached(tiny_llama(), runs)
    wanted = Loop(whole, runs, collate, LM, Store(tmp_path / "whole")).run()

    store = Store(tmp_path / "parts")
    cut = attached(tiny_llama(), runs)
    with pytest.raises(KeyboardInterrupt):
        Loop(cut, runs, collate, LM, store).run([StopAt(stop + 1)])
    checkpoint = tmp_path / "parts" / f"checkpoint-{stop}"
    resumed = PeftModel(tiny_llama())
    for name in runs:
        resumed.load_adapter(checkpoint / name, name, is_trainable=True)
    loop = Loop(resumed, runs, collate, LM, store)
    loop.resume(checkpoint)
    results = loop.run()
    for name in runs:
        theirs = weights(whole, name)
        for key, value in weights(resumed, name).items():
            assert torch.equal(value, theirs[key]), (name, key)
        losses, other = (
            [(r["step"], r.get("loss"), r.get("eval_loss")) for r in x[name].records]
            for x in (results, wanted)
        )
        assert losses == other


def test_a_failed_adapter_stays_out_of_a_resumed_run(tmp_path, lm_rows):
    runs = {
        "bad": run_of("lora", LM, lm_rows, learning_rate=1e20, max_grad_norm=0.0, save_steps=1),
        "good": run_of("ia3", LM, lm_rows, save_steps=1),
    }
    store, collate = Store(tmp_path), Collator(make_tokenizer(), LM)
    with pytest.raises(KeyboardInterrupt):
        Loop(attached(tiny_llama(), runs), runs, collate, LM, store).run([StopAt(5)])
    checkpoint = tmp_path / "checkpoint-4"
    assert sorted(p.name for p in checkpoint.iterdir()) == ["good", "round.json"]
    model = attached(tiny_llama(), runs)
    model.delete_adapter("good")
    model.load_adapter(checkpoint / "good", "good", is_trainable=True)
    loop = Loop(model, runs, collate, LM, store)
    loop.resume(checkpoint)
    results = loop.run()
    assert "no number any more" in results["bad"].failure
    assert 0 < results["bad"].progress.step < 4  # where it was, and its log with it
    assert [r["step"] for r in results["bad"].records] == [0, 1]
    assert results["good"].failure is None
    assert results["good"].progress.step == 6
    assert math.isfinite(results["good"].progress.train_loss)


def test_rows_that_are_shared_are_evaluated_once_without_adapters(lm_rows, monkeypatch):
    from graft.training import loop

    asked = []

    def evaluate(model, rows, *others):
        asked.append((tuple(model.acting), id(rows)))
        return {"loss": 1.0}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    held = lm_rows[:3]
    runs = {kind: replace(run_of(kind, LM, lm_rows), eval_rows=held) for kind in ("lora", "ia3")}
    together(tiny_llama, runs)
    assert asked.count(((), id(held))) == 1
    assert {names for names, _ in asked} == {(), ("lora",), ("ia3",)}


def test_every_method_is_among_them():
    assert set(OWN) == set(KINDS) == {str(kind).lower() for kind in PeftType if kind in METHODS}
