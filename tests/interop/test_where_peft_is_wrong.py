"""Where PEFT fails its users: one test for each point, of what graft does there instead."""

from __future__ import annotations

import copy
import math

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graft
from conformance.families import FAMILIES, PAD, VOCAB
from graft.config import TaskType
from graft.errors import CheckpointError, ConfigError, GraftError, TargetError

from .oracle import PEFT_WARNS, randomise

pytestmark = PEFT_WARNS

DECODERS = ["Llama", "GPT2"]
PROMPTS = {
    "prompt": lambda task: graft.PromptTuningConfig(task_type=task, num_virtual_tokens=4),
    "p_tuning": lambda task: graft.PromptEncoderConfig(task_type=task, num_virtual_tokens=4),
    "prefix": lambda task: graft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
}


def base(name: str, task: TaskType = TaskType.CAUSAL_LM) -> nn.Module:
    family = next(f for f in FAMILIES if f.name == name)
    return family.model(task).eval()


def adapted(name: str, config: graft.PeftConfig) -> graft.PeftModel:
    model = graft.get_peft_model(base(name, config.task_type or TaskType.CAUSAL_LM), config).eval()
    randomise(model)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(3, VOCAB, shape)


# --- 1: left-padded prompts ----------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("method", PROMPTS)
def test_left_padding_changes_nothing(family, method):
    model = adapted(family, PROMPTS[method](TaskType.CAUSAL_LM))
    row = ids(1, 5)
    padded = F.pad(row, (6, 0), value=PAD)
    mask = F.pad(torch.ones_like(row), (6, 0))
    alone = model(input_ids=row).logits[0, -1]
    beside = model(input_ids=padded, attention_mask=mask).logits[0, -1]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
    written = model.generate(input_ids=padded, attention_mask=mask, **options)[0, 11:]
    assert written.tolist() == model.generate(input_ids=row, **options)[0, 5:].tolist()


# --- 2: right-padded classifiers -----------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("method", PROMPTS)
def test_right_padding_changes_no_class(family, method):
    model = adapted(family, PROMPTS[method](TaskType.SEQ_CLS))
    row = ids(1, 5)
    padded, mask = F.pad(row, (0, 6), value=PAD), F.pad(torch.ones_like(row), (0, 6))
    alone = model(input_ids=row).logits
    beside = model(input_ids=padded, attention_mask=mask).logits
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


# --- 3: tokens and spans with virtual tokens -----------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_token_classes_are_of_the_tokens_given(method):
    model = adapted("Bert", PROMPTS[method](TaskType.TOKEN_CLS))
    rows, labels = ids(2, 6), torch.randint(0, 3, (2, 6))
    out = model(input_ids=rows, labels=labels)
    assert out.logits.shape == (2, 6, 3)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits.view(-1, 3), labels.view(-1)))


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_spans_are_of_the_tokens_given(method):
    model = adapted("Bert", PROMPTS[method](TaskType.QUESTION_ANS))
    starts, ends = torch.tensor([1, 4]), torch.tensor([2, 5])
    out = model(input_ids=ids(2, 6), start_positions=starts, end_positions=ends)
    assert out.start_logits.shape == (2, 6)
    losses = [F.cross_entropy(out.start_logits, starts), F.cross_entropy(out.end_logits, ends)]
    torch.testing.assert_close(out.loss, sum(losses) / 2)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# --- 4: a prefix under gradient checkpointing ----------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Bert"])
@pytest.mark.parametrize("before", [True, False], ids=["before attaching", "after"])
def test_a_prefix_learns_under_gradient_checkpointing(family, before):
    config = PROMPTS["prefix"](TaskType.FEATURE_EXTRACTION)
    rows = ids(2, 6)
    gradients = []
    for checkpointed in (False, True):
        model = base(family, TaskType.FEATURE_EXTRACTION)
        if checkpointed and before:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model = graft.get_peft_model(model, config).train()
        if checkpointed and not before:
            model.gradient_checkpointing_enable()
        model(input_ids=rows).last_hidden_state.square().sum().backward()
        gradients.append(next(model.adapter("default").parameters()).grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


# --- 5: caches of generation ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_a_static_cache_writes_the_same(method):
    model = adapted("Llama", PROMPTS[method](TaskType.CAUSAL_LM))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    row = ids(1, 5)
    plain = model.generate(input_ids=row, **options)
    static = model.generate(input_ids=row, cache_implementation="static", **options)
    assert static.tolist() == plain.tolist()


def test_a_static_cache_with_a_prefix_is_refused_in_words():
    model = adapted("Llama", PROMPTS["prefix"](TaskType.CAUSAL_LM))
    with pytest.raises(ConfigError, match="cache_implementation='static' cannot take a prefix"):
        model.generate(input_ids=ids(1, 5), cache_implementation="static", max_new_tokens=2)


@pytest.mark.parametrize("method", PROMPTS)
def test_generation_from_embeddings_and_by_beams(method):
    model = adapted("Llama", PROMPTS[method](TaskType.CAUSAL_LM))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    row = ids(1, 5)
    plain = model.generate(input_ids=row, **options)
    embedded = model.get_input_embeddings()(row)
    from_embeddings = model.generate(inputs_embeds=embedded, **options)
    assert from_embeddings[0].tolist() == plain[0, 5:].tolist()
    rows = torch.cat([row, ids(1, 5)])
    beams = model.generate(input_ids=rows, num_beams=3, **options)
    alone = model.generate(input_ids=row, num_beams=3, **options)
    assert beams[0, : alone.shape[1]].tolist() == alone[0].tolist()


# --- 6: mixed methods ----------------------------------------------------------------------


def test_rows_with_other_methods_train_side_by_side():
    model = graft.get_peft_model(
        base("Llama"), graft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), "lora"
    )
    model.add_adapter("prompt", PROMPTS["prompt"](TaskType.CAUSAL_LM))
    rows = ids(3, 6)
    names = ["prompt", "__base__", "lora"]
    logits = model(input_ids=rows, adapter_names=names).logits
    logits[0].sum().backward()  # the row of the prompt alone
    assert next(model.adapter("prompt").parameters()).grad is not None
    assert all(p.grad is None or not p.grad.any() for p in model.adapter("lora").parameters())
    both = [["lora", "prompt"]] * 3  # and both on one row
    model.set_adapter(["lora", "prompt"])
    torch.testing.assert_close(
        model(input_ids=rows, adapter_names=both).logits, model(input_ids=rows).logits
    )


# --- 7: encoders that resume ---------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        graft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        graft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True
        ),
    ],
    ids=["P-Tuning", "projected prefix"],
)
def test_an_encoder_learns_on_after_loading(config, tmp_path):
    rows = ids(2, 6)

    def step(model: graft.PeftModel) -> Tensor:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        return model(input_ids=rows).logits

    model = adapted("Llama", config)
    model.save_pretrained(tmp_path)
    again = graft.PeftModel.from_pretrained(base("Llama"), tmp_path, is_trainable=True).eval()
    torch.testing.assert_close(step(again), step(model), atol=0, rtol=0)


# --- 8: loud matching and loading ----------------------------------------------------------

LOUD = {
    "partly matched targets": ({"target_modules": ["q_proj", "v_porj"]}, TargetError, "v_proj"),
    "a misspelt module to save": ({"modules_to_save": ["lmhead"]}, TargetError, "lm_head"),
    "a layer that is not there": (
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 7]},
        TargetError,
        "0 to 1",
    ),
}


@pytest.mark.parametrize("case", LOUD)
def test_what_matches_nothing_is_said(case):
    settings, error, hint = LOUD[case]
    with pytest.raises(error, match=hint):
        graft.get_peft_model(base("Llama"), graft.LoraConfig(**settings))


def test_a_misspelt_field_is_said():
    with pytest.raises(ConfigError, match="target_modules"):
        graft.LoraConfig(target_module=["q_proj"])
    with pytest.raises(ConfigError, match="num_virtual_tokens is missing"):
        graft.PromptTuningConfig(task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="task_type"):
        graft.get_peft_model(base("Llama"), graft.PromptTuningConfig(num_virtual_tokens=2))


def test_a_checkpoint_that_does_not_fit_is_said(tmp_path):
    model = graft.get_peft_model(base("Llama"), graft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    other = graft.get_peft_model(base("Llama"), graft.LoraConfig(target_modules=["k_proj"]))
    with pytest.raises(CheckpointError, match="no home"):
        graft.set_peft_model_state_dict(other, graft.get_peft_model_state_dict(model))
    with pytest.raises(GraftError):
        graft.PeftModel.from_pretrained(base("GPT2"), tmp_path)
    with pytest.raises(ConfigError, match="already"):
        model.add_weighted_adapter(["default"], [1.0], "default", "cat")


# --- 9: no fp32 copies of activations ------------------------------------------------------


def _saved_bytes(model: nn.Module, rows: Tensor) -> int:
    """Bytes that the forward keeps for the backward, each storage once, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    holding = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (holding.append(t), pack(t))[1], lambda t: t
    ):
        out = model(input_ids=rows).logits
    assert out.requires_grad
    return sum(kept.values())


def test_inputs_are_not_cast_to_fp32():
    settings = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    rows = ids(4, 32)
    ours = graft.get_peft_model(base("Llama").bfloat16(), graft.LoraConfig(**settings)).train()
    theirs = peft.get_peft_model(base("Llama").bfloat16(), peft.LoraConfig(**settings)).train()
    assert next(ours.adapter("default").parameters()).dtype is torch.float32
    half = peft.get_peft_model(
        base("Llama").bfloat16(), peft.LoraConfig(**settings), autocast_adapter_dtype=False
    ).train()
    saved = _saved_bytes(ours, rows)
    assert saved < 0.8 * _saved_bytes(theirs, rows)
    assert saved < 1.02 * _saved_bytes(half, rows)  # as PEFT with adapters in bf16


# --- 10: quantised base models are prepared, not blown up ----------------------------------


def test_preparing_for_quantised_training_casts_nothing():
    model = base("Llama").bfloat16()
    before = {name: p.dtype for name, p in model.named_parameters()}
    prepared = graft.prepare_model_for_kbit_training(model)
    assert {name: p.dtype for name, p in prepared.named_parameters()} == before
    assert not any(p.requires_grad for p in prepared.parameters())
    assert prepared.is_activation_checkpointing


# --- 11: adapter algebra -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cat", "linear"])
def test_combinations_are_exact_and_know_rslora(kind):
    settings = {"init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}
    model = graft.get_peft_model(base("Llama"), graft.LoraConfig(r=4, **settings), "a").eval()
    model.add_adapter("b", graft.LoraConfig(r=2, use_rslora=True, lora_alpha=3, **settings))
    scale = {"a": 8 / 4, "b": 3 / math.sqrt(2)}
    errors = model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "c", kind)
    assert set(errors.values()) == {0.0}
    expected = base("Llama")
    with torch.no_grad():
        for name, weight in (("a", 0.7), ("b", -0.4)):
            for path, layer in model.adapter(name).layers.items():
                update = layer.lora_B @ layer.lora_A
                expected.get_submodule(path).weight += weight * scale[name] * update
    model.set_adapter("c")
    rows = ids(2, 6)
    torch.testing.assert_close(model(input_ids=rows).logits, expected(input_ids=rows).logits)


def test_identities_combine_to_the_identity():
    model = graft.get_peft_model(
        base("Llama"), graft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "a"
    ).eval()
    model.add_adapter("b", graft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", "linear")
    model.set_adapter("c")
    rows = ids(2, 6)
    assert torch.equal(model(input_ids=rows).logits, base("Llama")(input_ids=rows).logits)


# --- 12: merging never loses the base ------------------------------------------------------


def test_ten_merges_leave_no_trace():
    model = base("Llama").bfloat16()
    before = copy.deepcopy(model.state_dict())
    adapted = graft.get_peft_model(
        model, graft.IA3Config(target_modules=["v_proj"], feedforward_modules=[])
    )
    with torch.no_grad():
        for parameter in adapted.adapter("default").parameters():
            parameter.zero_()  # a factor of zero, which no division brings back
    for _ in range(10):
        adapted.merge_adapter()
        assert not model.model.layers[0].self_attn.v_proj.weight.any()
        adapted.unmerge_adapter()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("task", [TaskType.CAUSAL_LM, TaskType.SEQ_CLS])
@pytest.mark.parametrize("method", [*PROMPTS, "lora"])
def test_disabling_restores_what_was(task, method):
    config = graft.LoraConfig(task_type=task, init_lora_weights=False, inference_mode=True)
    model = graft.get_peft_model(
        base("Llama", task), config if method == "lora" else PROMPTS[method](task)
    ).eval()
    rows = ids(2, 6)
    if method == "lora":
        model.merge_adapter()
    before = model(input_ids=rows).logits
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    with model.disable_adapter():
        torch.testing.assert_close(
            model(input_ids=rows).logits, base("Llama", task)(input_ids=rows).logits
        )
    assert torch.equal(model(input_ids=rows).logits, before)
    assert model.merged_adapters == (["default"] if method == "lora" else [])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learning


# --- 13: defaults that train ---------------------------------------------------------------


def test_a_prompt_starts_at_the_scale_of_embeddings():
    model = base("Llama")
    table = model.get_input_embeddings().weight
    for start in ("SAMPLE_VOCAB", "RANDOM"):
        config = graft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=64, prompt_tuning_init=start
        )
        prompt = next(
            graft.get_peft_model(copy.deepcopy(model), config).adapter("default").parameters()
        )
        assert 0.8 < prompt.std() / table.std() < 1.25
    assert graft.PromptTuningConfig(num_virtual_tokens=1).prompt_tuning_init == "SAMPLE_VOCAB"


def test_a_prefix_starts_from_key_values_of_the_model():
    """Real tokens in front: exactly what the model makes of their ids."""
    model = base("Llama")
    adapted = graft.get_peft_model(copy.deepcopy(model), PROMPTS["prefix"](TaskType.CAUSAL_LM))
    prefix = adapted.adapter("default").virtual_tokens.key_values()  # [L, 2, H, N, K]
    keys = [
        model(input_ids=torch.tensor([[token]]), use_cache=True).cache.layers[0].keys[0, :, 0]
        for token in range(VOCAB)
    ]
    first = prefix[0, 0, :, 0]  # the first key of the first layer, at position 0
    assert min((first - key).abs().max() for key in keys) < 1e-6


def test_dropout_of_an_encoder_acts():
    config = graft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_dropout=0.5
    )
    encoder = graft.get_peft_model(base("Llama"), config).adapter("default").virtual_tokens.encoder
    encoder.train()
    assert not torch.equal(encoder(), encoder())
    encoder.eval()
    assert torch.equal(encoder(), encoder())


def test_no_virtual_token_of_an_encoder_decoder_is_dead():
    model = adapted("T5", PROMPTS["prompt"](TaskType.SEQ_2_SEQ_LM))
    model(input_ids=ids(2, 6), labels=ids(2, 4)).loss.backward()
    (prompt,) = model.adapter("default").parameters()
    assert len(prompt) == 4
    assert prompt.grad.abs().sum(1).min() > 0


# --- 14: coverage without tables -----------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", [graft.LoraConfig, graft.IA3Config, graft.BitFitConfig])
def test_targets_are_found_without_a_table(family, kind):
    task = TaskType.FEATURE_EXTRACTION
    model = graft.get_peft_model(family.model(task), kind(task_type=task))
    layers = {int(i) for path in model.sites for i in path.split(".") if i.isdigit()}
    assert layers >= {0, 1}  # all of them


def test_all_linear_reaches_experts_with_dropout_and_mixed_rows():
    model = graft.get_peft_model(
        base("Mixtral"),
        graft.LoraConfig(target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False),
    )
    assert {path.rpartition(".")[2] for path in model.sites} >= {"q_proj", "experts"}
    rows = ids(3, 6)
    model.train()
    assert not torch.equal(model(input_ids=rows).logits, model(input_ids=rows).logits)
    model.eval()
    mixed = model(input_ids=rows, adapter_names=["default", "__base__", "default"]).logits
    torch.testing.assert_close(mixed[::2], model(input_ids=rows).logits[::2], atol=1e-5, rtol=0)
    plain = base("Mixtral")(input_ids=rows).logits
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=0)


# --- 15: clean state -----------------------------------------------------------------------


def test_one_config_serves_two_architectures():
    for config in (graft.LoraConfig(), PROMPTS["prefix"](TaskType.CAUSAL_LM)):
        before = copy.deepcopy(config)
        for family in ("Llama", "GPT2"):
            graft.get_peft_model(base(family), config)
        assert config == before


def test_names_of_adapters_are_free():
    model = graft.get_peft_model(base("Llama"), graft.LoraConfig(init_lora_weights=False), "o")
    model.add_adapter("a", graft.LoraConfig(init_lora_weights=False))
    model.add_adapter("lora_A", PROMPTS["prompt"](TaskType.CAUSAL_LM))
    trained = {name: [p.shape for p in model.adapter(name).parameters()] for name in model.adapters}
    assert trained["o"] == trained["a"]
    assert len(trained["lora_A"]) == 1


def test_status_knows_virtual_tokens():
    model = graft.get_peft_model(base("Llama"), PROMPTS["prompt"](TaskType.CAUSAL_LM))
    (layer,) = model.get_layer_status()
    assert (layer.name, layer.available_adapters) == ("prompt_encoder", ["default"])
    status = model.get_model_status()
    assert status.trainable_params == 4 * 32
    assert status.peft_types == {"default": "PROMPT_TUNING"}
    model.set_requires_grad("default", False)
    assert model.get_model_status().trainable_params == 0
