"""graft's model in the hands of transformers, accelerate and torch, as their tutorials use it."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

import graft
from conformance.families import FAMILIES, VOCAB
from graft.config import TaskType
from graft.methods import METHODS, make_config
from tiny import make_tokenizer, tiny_llama

METHOD_NAMES = [kind.value.lower() for kind in METHODS]


def config(method: str, task: str = "CAUSAL_LM") -> graft.PeftConfig:
    prompts = METHODS[graft.PeftType(method.upper())].config_class.is_prompt_learning
    return make_config(method, task_type=task, **({"num_virtual_tokens": 3} if prompts else {}))


def family(name: str, task: TaskType | None = None) -> nn.Module:
    return next(f for f in FAMILIES if f.name == name).model(task)


def arguments(folder, **settings) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_only_model": False,
    }
    return TrainingArguments(str(folder), **{**usual, **settings})


def rows(count: int = 16) -> list[dict]:
    return [
        {"input_ids": ids, "labels": ids, "attention_mask": [1] * 6, "note": "not for the model"}
        for ids in torch.randint(3, VOCAB, (count, 6)).tolist()
    ]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_trainer(method, tmp_path):
    """Trains, evaluates, ends with the best, and resumes; for encoders of virtual tokens too."""
    data = rows()
    model = graft.get_peft_model(family("Llama"), config(method))
    frozen = copy.deepcopy(model.base_model.state_dict())
    settings = arguments(tmp_path, load_best_model_at_end=True)
    collate = default_data_collator
    trainer = Trainer(model, settings, collate, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    assert after == pytest.approx(
        min(r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r)
    )
    assert all(torch.equal(model.base_model.state_dict()[k], v) for k, v in frozen.items())

    torch.manual_seed(5)
    other = graft.get_peft_model(family("Llama"), config(method))
    resumed = Trainer(other, settings, collate, train_dataset=data, eval_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed_rows = resumed.state.log_history
    losses = [
        {r["step"]: r["loss"] for r in history if "loss" in r}
        for history in (trainer.state.log_history, resumed_rows)
    ]
    assert losses[1] == pytest.approx(losses[0])
    model.save_pretrained(tmp_path / "adapter")
    again = graft.PeftModel.from_pretrained(family("Llama"), tmp_path / "adapter").eval()
    ids = torch.tensor([data[0]["input_ids"]])
    torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_trainer_knows_the_labels_of_a_task(tmp_path):
    model = graft.get_peft_model(
        family("Bert", TaskType.QUESTION_ANS), config("lora", "QUESTION_ANS")
    )
    trainer = Trainer(model, arguments(tmp_path, eval_strategy="no"))
    assert trainer.label_names == ["start_positions", "end_positions"]
    assert trainer.can_return_loss is False


def test_padding_by_a_collator_for_seq2seq():
    """Labels padded with -100, inputs on the right: the loss is that of the rows alone."""
    tokenizer = make_tokenizer()
    model = graft.get_peft_model(tiny_llama(), config("prompt_tuning")).eval()
    texts = ["The cat sees a fish", "A dog wants"]
    features = [{"input_ids": ids, "labels": list(ids)} for ids in tokenizer(texts)["input_ids"]]
    batch = DataCollatorForSeq2Seq(tokenizer, model)(features)
    total, count = 0.0, 0
    for feature in features:
        ids = torch.tensor([feature["input_ids"]])
        # The first token has a loss too: virtual tokens stand before it.
        total += model(input_ids=ids, labels=ids).loss.item() * _targets(model, ids)
        count += _targets(model, ids)
    assert model(**batch).loss.item() == pytest.approx(total / count, rel=1e-5)


def _targets(model: graft.PeftModel, ids: torch.Tensor) -> int:
    """Tokens with a loss: found by masking them one after the other."""
    whole = model(input_ids=ids, labels=ids).loss
    masked = ids.clone()
    masked[0, 0] = -100
    return ids.shape[1] - int(torch.equal(model(input_ids=ids, labels=masked).loss, whole))


def test_pipeline_after_merging(tmp_path):
    tokenizer = make_tokenizer()
    model = graft.get_peft_model(tiny_llama(), graft.LoraConfig(init_lora_weights=False)).eval()
    ids = tokenizer("The cat", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(input_ids=ids, **options)
    merged = model.merge_and_unload()
    merged.generation_config.max_length = None
    write = pipeline("text-generation", model=merged, tokenizer=tokenizer)
    (answer,) = write("The cat", **options)
    assert answer["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_accelerate(method):
    model = graft.get_peft_model(family("Llama"), config(method))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    ids = torch.randint(3, VOCAB, (4, 6))
    losses = []
    for _ in range(5):
        loss = prepared(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert isinstance(accelerator.unwrap_model(prepared), graft.PeftModel)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_copies_and_state_dicts(method, tmp_path):
    model = graft.get_peft_model(family("Llama"), config(method)).eval()
    ids = torch.randint(3, VOCAB, (2, 6))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    changed = model(input_ids=ids).logits
    assert not torch.equal(twin(input_ids=ids).logits, changed)  # the copy is on its own
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert not any("base_model" in key for key in state)  # what is frozen is not ours to save
    twin.load_state_dict(state)
    assert torch.equal(twin(input_ids=ids).logits, changed)
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict({})


def test_compiled_models_keep_their_adapters():
    """Attaching after a first compilation, switching and mixing: never silently the base model."""
    model = graft.get_peft_model(family("Llama"), config("lora")).eval()
    compiled = torch.compile(model, backend="eager")
    ids = torch.randint(3, VOCAB, (2, 6))
    base = compiled(input_ids=ids).logits
    settings = {"init_lora_weights": False, "target_modules": "all-linear"}
    model.add_adapter("other", graft.LoraConfig(**settings))
    model.set_adapter("other")
    torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.equal(compiled(input_ids=ids).logits, base)
    names = ["other", "__base__"]
    mixed = compiled(input_ids=ids, adapter_names=names).logits
    torch.testing.assert_close(mixed[1], base[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed, model(input_ids=ids, adapter_names=names).logits)


def test_any_module():
    """A Sequential of two Linears has neither config nor vocabulary."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 4)
    plain = net(x)
    for settings in (
        graft.LoraConfig(target_modules=["0", "2"]),
        graft.IA3Config(target_modules=["0", "2"], feedforward_modules=["2"]),
        graft.BitFitConfig(),
    ):
        model = graft.get_peft_model(net, settings)
        assert torch.equal(model(x), plain)
        model(x).sum().backward()
        grown = [p for p in model.parameters() if p.requires_grad]
        assert grown
        assert all(p.grad is not None for p in grown)
        mixed = model(x, adapter_names=["default", "__base__", "default", "__base__", "default"])
        torch.testing.assert_close(mixed, plain)
        model.unload()
    with pytest.raises(graft.GraftError, match="need a transformers model"):
        graft.get_peft_model(net, config("prompt_tuning"))


def test_injected_adapters_act_without_a_wrapper():
    model = family("Llama")
    ids = torch.randint(3, VOCAB, (2, 6))
    plain = model(input_ids=ids).logits
    settings = graft.LoraConfig(init_lora_weights=False)
    expected = graft.get_peft_model(family("Llama"), settings)
    injected = graft.inject_adapter_in_model(settings, model)
    assert injected is model
    model.graft_adapters.load_state_dict(expected.adapters.state_dict())
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, expected(input_ids=ids).logits)
    assert not torch.equal(logits, plain)
    logits.sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {
        "graft_adapters"
    }
    with pytest.raises(graft.GraftError, match="use get_peft_model"):
        graft.inject_adapter_in_model(config("prompt_tuning"), family("Llama"))


@pytest.mark.parametrize(("method", "tag"), [("lora", "lora"), ("ia3", "ia3")])
def test_a_model_card_says_whose_format_it_is(method, tag, tmp_path):
    model = graft.get_peft_model(family("Llama"), config(method))
    model.create_or_update_model_card(tmp_path / "new")
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert card.data.library_name == "peft"
    assert tag in card.data.tags
