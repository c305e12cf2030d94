"""`generate` with adapters: lengths, options and outputs are those of the caller's rows."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from conformance.families import FAMILIES
from graft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from graft.errors import ConfigError

MODELS = {family.name: family for family in FAMILIES}
IDS = torch.tensor([[5, 9, 33], [7, 2, 60], [8, 8, 8]])
GREEDY = {"do_sample": False}


def make_model(name: str = "Llama") -> PeftModel:
    """A model with the adapters "low", "soft" and "prefix", all as if trained."""
    family = MODELS[name]
    task = family.task
    model = get_peft_model(
        family.model(), LoraConfig(task_type=task, init_lora_weights=False), "low"
    )
    model.add_adapter("soft", PromptTuningConfig(task_type=task, num_virtual_tokens=3))
    model.add_adapter("prefix", PrefixTuningConfig(task_type=task, num_virtual_tokens=2))
    model.generation_config.eos_token_id = None  # so that nothing ends early
    return model.eval()


each_kind = pytest.mark.parametrize("name", ["low", "soft", "prefix"])


@each_kind
def test_lengths_count_the_text_alone(name):
    model = make_model()
    model.set_adapter(name)
    expected = model.generate(IDS, max_new_tokens=4, **GREEDY)
    assert expected.shape == (3, 7)
    assert torch.equal(model.generate(IDS, max_length=7, **GREEDY), expected)
    config = GenerationConfig(max_length=7, do_sample=False)
    assert torch.equal(model.generate(IDS, generation_config=config), expected)
    assert torch.equal(model.generate(IDS, generation_config=config, max_length=5), expected[:, :5])
    assert config.max_length == 7
    model.generation_config.max_length = 7
    assert torch.equal(model.generate(IDS, **GREEDY), expected)


def test_settings_go_on_as_they_came(monkeypatch):
    model, seen = make_model(), {}

    def generate(inputs=None, **given):
        seen.update(given)
        return torch.zeros(3, 9)

    monkeypatch.setattr(model.base_model, "generate", generate)
    model.set_adapter("soft")
    model.generate(IDS, max_length=7)
    assert "generation_config" not in seen  # transformers wants one of the two
    assert seen["max_length"] == 7 + 3
    seen.clear()
    model.generate(IDS, generation_config=GenerationConfig(max_length=7))
    assert "max_length" not in seen
    assert seen["generation_config"].max_length == 7 + 3


@each_kind
def test_a_least_length_counts_the_text_alone(name):
    model = make_model()
    model.set_adapter(name)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": list(range(32))}
    short = model.generate(IDS[:1], **options)
    assert short.shape[1] < 8
    assert model.generate(IDS[:1], min_length=8, **options).shape[1] >= 8
    config = GenerationConfig(min_length=8, **options)
    longer = model.generate(IDS[:1], generation_config=config)
    assert torch.equal(longer, model.generate(IDS[:1], min_length=8, **options))


@each_kind
def test_embeddings_in_the_place_of_ids(name):
    model = make_model()
    model.set_adapter(name)
    embeds = model.get_input_embeddings()(IDS)
    expected = model.generate(IDS, max_new_tokens=4, **GREEDY)
    new = model.generate(inputs_embeds=embeds, max_new_tokens=4, **GREEDY)
    assert torch.equal(new, expected[:, 3:])  # transformers gives the new tokens alone


@pytest.mark.parametrize("names", [["low"] * 3, ["soft", "low", "soft"], ["prefix", "low", "soft"]])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_dict_has_every_part_in_the_order_of_the_rows(names, copies):
    model = make_model()
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
    if copies > 1:
        options |= {"num_beams": copies, "num_return_sequences": copies}
    mixed = model.generate(IDS, adapter_names=names, **options, **GREEDY)
    for row, name in enumerate(names):
        alone = model.generate(IDS[row : row + 1], adapter_names=[name], **options, **GREEDY)
        rows = slice(row * copies, (row + 1) * copies)
        assert torch.equal(mixed.sequences[rows], alone.sequences)
        for step, expected in zip(mixed.scores, alone.scores, strict=True):
            torch.testing.assert_close(step[rows], expected, rtol=0, atol=1e-5)


def test_options_that_cannot_go_with_virtual_tokens_are_refused():
    model = make_model()
    model.set_adapter("prefix")
    with pytest.raises(ConfigError, match="'static' cannot take a prefix; leave it out"):
        model.generate(IDS, max_new_tokens=2, cache_implementation="static")
    for name in ("prefix", "soft"):
        model.set_adapter(name)
        with pytest.raises(ConfigError, match="prefill_chunk_size does not go with virtual"):
            model.generate(IDS, max_new_tokens=2, prefill_chunk_size=2)


@each_kind
def test_an_encoder_decoder_starts_as_it_does(name):
    model = make_model("T5")
    model.set_adapter(name)
    expected = model.generate(IDS, max_new_tokens=4, **GREEDY)
    start = torch.full((3, 1), model.generation_config.decoder_start_token_id)
    given = model.generate(IDS, decoder_input_ids=start, max_new_tokens=4, **GREEDY)
    assert torch.equal(given, expected)
    assert torch.equal(expected[:, :1], start)


@each_kind
def test_a_conversation_goes_on_from_its_cache(name):
    model = make_model()
    model.set_adapter(name)
    whole = model(IDS).logits
    first = model(IDS[:, :2], use_cache=True)
    last = model(IDS[:, 2:], cache=first.cache, use_cache=True).logits
    torch.testing.assert_close(last[:, -1], whole[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "GPT2"])  # which gives a cache back or does not
def test_a_cache_of_mixed_rows_is_in_their_order(family):
    model = make_model(family)
    names = ["low", "__base__", "low"]
    whole = model(IDS, adapter_names=names).logits
    first = model(IDS[:, :2], adapter_names=names, use_cache=True)
    last = model(IDS[:, 2:], adapter_names=names, cache=first.cache).logits
    torch.testing.assert_close(last[:, -1], whole[:, -1], rtol=0, atol=1e-5)
    for options in ({"return_dict": False}, {"use_cache": False}):
        cache = DynamicCache()
        model(IDS[:, :2], adapter_names=names, cache=cache, **options)
        for layer, expected in zip(cache.layers, first.cache.layers, strict=True):
            torch.testing.assert_close(layer.keys[:, :, :2], expected.keys[:, :, :2])


@each_kind
def test_logits_of_some_positions(name):
    model = make_model()
    model.set_adapter(name)
    whole = model(IDS).logits
    some = model(IDS, logits_to_keep=torch.tensor([0, 2])).logits
    torch.testing.assert_close(some, whole[:, [0, 2]], rtol=0, atol=1e-6)
    last = model(IDS, logits_to_keep=1).logits
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=1e-6)


def test_a_mask_of_another_form_is_refused():
    model = make_model()
    model.set_adapter("soft")
    with pytest.raises(ConfigError, match=r"must be \[rows, tokens\], not \(3, 1, 3, 3\)"):
        model(IDS, attention_mask=torch.ones(3, 1, 3, 3))


@each_kind
def test_lengths_count_embeddings_of_the_text_alone(name):
    model = make_model()
    model.set_adapter(name)
    expected = model.generate(IDS, max_new_tokens=4, **GREEDY)[:, 3:]
    embeds = model.get_input_embeddings()(IDS)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_length=7, **GREEDY), expected)
    least = {"min_length": 7, "eos_token_id": list(range(1, 64)), "pad_token_id": 0}
    given = model.generate(inputs_embeds=embeds, max_new_tokens=6, **least, **GREEDY)
    assert given.shape[1] >= 5  # four that cannot end, and the end


@each_kind
def test_a_config_may_be_the_second_argument(name):
    model = make_model()
    model.set_adapter(name)
    config = GenerationConfig(max_new_tokens=2, do_sample=False)
    assert model.generate(IDS, config).shape == (3, 5)


def test_layers_are_adapted_whatever_the_model_reads():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=32, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
        encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    low = LoraConfig(target_modules=["q_proj", "fc2"], init_lora_weights=False)
    model = get_peft_model(WhisperForConditionalGeneration(config), low).eval()
    heard = torch.randn(2, 8, 40)
    options = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(input_features=heard, **options, **GREEDY)
    start = torch.ones(2, 1, dtype=torch.long)
    expected = model(input_features=heard, decoder_input_ids=start).logits[:, -1]
    torch.testing.assert_close(out.logits[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": MODELS["Llama"].model()}]
)
def test_a_prefix_is_not_assisted(how):
    model = make_model()
    model.set_adapter("prefix")
    with pytest.raises(ConfigError, match=f"{next(iter(how))} cannot take a prefix; leave it out"):
        model.generate(IDS[:1], max_new_tokens=2, **how)


@each_kind
def test_an_adapter_that_changed_acts_as_it_is_now(name):
    model = make_model()
    model.set_adapter(name)
    model.generate(IDS, max_new_tokens=6, **GREEDY)
    for parameter in model.adapter(name).parameters():
        torch.nn.init.normal_(parameter)
    ids = model.generate(IDS, max_new_tokens=6, **GREEDY)
    expected = IDS
    for _ in range(6):  # nothing kept from step to step
        following = model(expected).logits[:, -1].argmax(-1)
        expected = torch.cat([expected, following[:, None]], 1)
    assert torch.equal(ids, expected)


def test_the_head_reads_one_piece_of_memory_while_it_generates():
    """For rows apart torch copies a frozen weight once for each row."""
    model = make_model()
    model.set_adapter("low")
    head, seen = model.lm_head, []
    hook = head.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model.generate(IDS, max_new_tokens=2, **GREEDY)
    hook.remove()
    assert seen[0].shape[:2] == (3, 1)  # of the prompts of three tokens the last ones
    assert all(given.is_contiguous() for given in seen)
    assert not head._forward_pre_hooks
