"""Adapters by name: which there are, which act, which learn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from graft.errors import ConfigError, MergeError


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))


def lora(*names: str) -> LoraConfig:
    return LoraConfig(r=2, init_lora_weights=False, target_modules=list(names) or ["0", "2"])


X = torch.linspace(-1, 1, 15).view(3, 5)


@pytest.fixture
def model() -> PeftModel:
    """A net with the adapters "first" (active) and "second", which is at one layer only."""
    model = get_peft_model(Net(), lora(), "first")
    model.add_adapter("second", lora("2"))
    return model


def test_the_base_model_is_frozen_and_not_replaced(model):
    assert isinstance(model.base_model, Net)
    assert [type(layer) for layer in model.base_model] == [nn.Linear, nn.Tanh, nn.Linear]
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all(name.startswith("adapters.") for name in learning)


def test_adapters_are_not_put_on_adapters(model):
    with pytest.raises(ConfigError, match="has adapters already; use its add_adapter"):
        get_peft_model(model, lora())


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "__base__", 3, None])
def test_what_cannot_be_a_name(model, name):
    with pytest.raises(ConfigError, match="cannot be an adapter's name"):
        model.add_adapter(name, lora())


def test_names_that_torch_uses(model):
    with pytest.raises(ConfigError, match=r"torch uses it\. Try keys_1"):
        model.add_adapter("keys", lora())


def test_a_name_is_given_once(model):
    with pytest.raises(ConfigError, match="an adapter 'first' already; delete it first"):
        model.add_adapter("first", lora())


@pytest.mark.parametrize("name", ["o", "a", "lora_", "default_1", "模型"])
def test_other_names_are_fine(model, name):
    model.add_adapter(name, lora())
    model.set_adapter(name)
    assert model.active_adapter == name
    model(X)


@pytest.mark.parametrize("call", ["set_adapter", "delete_adapter", "set_requires_grad", "adapter"])
def test_an_adapter_that_is_not_there_is_named_with_the_nearest(model, call):
    with pytest.raises(ConfigError, match=r"no adapter 'secnd'\. Did you mean second"):
        getattr(model, call)("secnd")


# --- acting ---------------------------------------------------------------------------------------


def test_the_active_adapters_act_in_order(model):
    first = model(X)
    model.set_adapter("second")
    assert model.active_adapter == "second"
    assert model.active_adapters == ["second"]
    assert model.peft_type == "LORA"
    assert not torch.equal(model(X), first)
    model.set_adapter(["first", "second"])
    assert model.active_adapter == ["first", "second"]
    assert model.active_peft_config is model.peft_config["first"]
    model.set_adapter([])
    assert torch.equal(model(X), Net()(X))
    with pytest.raises(ConfigError, match="No adapter is active; call set_adapter"):
        _ = model.active_peft_config


def test_adapters_of_two_methods_add_up(model):
    model.add_adapter("third", IA3Config(target_modules=["0"], feedforward_modules=[]))
    model.adapter("third").layers["0"].ia3_l.data.fill_(2.0)
    model.set_adapter(["second", "third"])
    net, low = Net(), model.adapter("second").layers["2"]
    hidden = torch.tanh(2 * net[0](X))
    expected = net[2](hidden) + low.scaling * hidden @ low.lora_A.T @ low.lora_B.T
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-6)


def test_disabling_restores_what_was(model):
    model.set_adapter(["second", "first"])
    before = model(X)
    with model.disable_adapter():
        assert torch.equal(model(X), Net()(X))
        assert model.active_adapters == []
    assert model.active_adapters == ["second", "first"]
    assert torch.equal(model(X), before)
    with pytest.raises(RuntimeError), model.disable_adapter():
        model(torch.randn(3, 9))
    assert model.active_adapters == ["second", "first"]


def test_disabling_takes_merged_adapters_out_and_puts_them_back(model):
    model.merge_adapter(["first"])
    merged = model(X)
    with model.disable_adapter():
        assert torch.equal(model(X), Net()(X))
    assert model.merged_adapters == ["first"]
    assert torch.equal(model(X), merged)


def test_disabling_does_not_make_an_adapter_learn(model):
    model.set_requires_grad("first", False)
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for p in model.adapter("first").parameters())


def test_layers_are_disabled_until_they_are_enabled(model):
    before = model(X)
    model.disable_adapter_layers()
    assert torch.equal(model(X), Net()(X))
    assert model.active_adapters == ["first"]
    model.enable_adapter_layers()
    assert torch.equal(model(X), before)


def test_what_is_merged_cannot_be_disabled_for_good(model):
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"'first' is merged; call unmerge_adapter\(\) first"):
        model.disable_adapter_layers()


# --- learning -------------------------------------------------------------------------------------


def test_acting_and_learning_are_two_things(model):
    def learning(name: str) -> set[bool]:
        return {parameter.requires_grad for parameter in model.adapter(name).parameters()}

    model.set_adapter("second")
    assert learning("first") == learning("second") == {True}
    model.set_requires_grad("first", False)
    assert learning("first") == {False}
    model.set_adapter("first")
    assert learning("first") == {False}
    model.set_requires_grad(["first", "second"])
    assert learning("first") == learning("second") == {True}
    model.set_adapter("second", inference_mode=True)
    assert learning("second") == {False}
    model.add_adapter("third", lora().changed(inference_mode=True))
    assert learning("third") == {False}


def test_a_new_adapter_is_in_the_models_mode(model):
    model.eval()
    model.add_adapter("third", lora())
    assert not model.adapter("third").training


# --- deleting -------------------------------------------------------------------------------------


def test_deleting_the_last_adapter_of_a_layer_frees_it(model):
    assert model.targeted_module_names == ["0", "2"]
    model.delete_adapter("first")
    assert model.targeted_module_names == ["2"]
    assert not model.base_model[0]._forward_hooks
    assert model.active_adapters == []
    model.delete_adapter("second")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.base_model)
    assert torch.equal(model(X), Net()(X))


def test_deleting_frees_modules_that_were_replaced():
    config = LoraConfig(target_modules=["0"], modules_to_save=["2"])
    model = get_peft_model(Net(), config, "first")
    model.add_adapter("second", config)
    model.delete_adapter("first")
    assert list(model.saved["2"].copies) == ["second"]
    model.delete_adapter("second")
    assert model.saved == {}
    assert "forward" not in vars(model.base_model[2])


def test_a_merged_adapter_is_not_deleted(model):
    model.merge_adapter()
    with pytest.raises(MergeError, match="'first' is merged"):
        model.delete_adapter("first")


# --- counts, copies, attributes -------------------------------------------------------------------


def test_parameters_are_counted(model, capsys):
    base = sum(parameter.numel() for parameter in Net().parameters())
    low = [sum(p.numel() for p in model.adapter(n).parameters()) for n in ("first", "second")]
    assert model.get_nb_trainable_parameters() == (sum(low), base + sum(low))
    model.print_trainable_parameters()
    own, every = sum(low), base + sum(low)
    said = (
        f"trainable params: {own} || all params: {every} || trainable%: {100 * own / every:.4f}\n"
    )
    assert capsys.readouterr().out == said


def test_a_copy_is_independent(model):
    other = copy.deepcopy(model)
    assert torch.equal(other(X), model(X))
    for parameter in other.parameters():
        parameter.data.zero_()
    assert other(X).abs().max() == 0
    assert model(X).abs().max() > 0


def test_a_state_dict_holds_the_adapters_and_loads(model):
    state = model.state_dict()
    assert state
    assert all(name.startswith("adapters.") for name in state)
    other = get_peft_model(Net(), lora(), "first")
    other.add_adapter("second", lora("2"))
    for parameter in other.adapters.parameters():
        parameter.data.zero_()
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(state)
    assert torch.equal(other(X), model(X))


def test_attributes_of_the_base_model_are_reachable(model):
    model.base_model.note = "mine"
    assert model.note == "mine"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = model.nothing_like_it


def test_virtual_tokens_need_no_layer():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ConfigError, match="has no input embeddings"):
        get_peft_model(Net(), config)


def test_a_model_that_is_not_made_yet_has_no_attributes():
    bare = PeftModel.__new__(PeftModel)  # as when it is unpickled
    with pytest.raises(AttributeError):
        _ = bare.anything


def test_an_adapter_is_active_once(model):
    with pytest.raises(ConfigError, match="'first' is named twice"):
        model.set_adapter(["first", "first"])
    assert model.active_adapters == ["first"]


@pytest.mark.parametrize("is_merged", [False, True])
def test_what_is_deleted_while_disabled_does_not_come_back(model, is_merged):
    model.set_adapter(["first", "second"])
    if is_merged:
        model.merge_adapter()
    with model.disable_adapter():
        model.delete_adapter("first")
    assert model.active_adapters == ["second"]
    assert model.merged_adapters == ["second"] * is_merged


def test_a_new_adapter_starts_from_the_base_models_own_weights(model):
    expected = model(X)
    model.merge_adapter()
    dora = LoraConfig(r=2, target_modules=["0"], use_dora=True, modules_to_save=["2"])
    model.add_adapter("third", dora)
    own = Net()
    torch.testing.assert_close(model.adapter("third").saved["2"].weight, own[2].weight)
    magnitude = model.adapter("third").layers["0"].lora_magnitude_vector
    torch.testing.assert_close(magnitude, own[0].weight.norm(dim=1))
    torch.testing.assert_close(model(X), expected)


def test_the_own_weights_go_where_the_model_goes(model):
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(X.double()), Net().double()(X.double()))


def test_two_models_on_one_base_leave_each_other_their_modules():
    base = Net()
    config = LoraConfig(target_modules=["0"], init_lora_weights=False, modules_to_save=["2"])
    one, two = get_peft_model(base, config), get_peft_model(base, config)
    nn.init.normal_(two.adapter("default").saved["2"].weight)
    expected = two(X)
    one.unload()
    assert torch.equal(two(X), expected)
    two.unload()
    assert torch.equal(base(X), Net()(X))
    again, other = get_peft_model(base, config), get_peft_model(base, config)
    adapted = again(X)
    other.unload()  # in the other order
    assert torch.equal(again(X), adapted)


@pytest.mark.parametrize("name", [None, 3, ["first", None]])
def test_what_is_no_name_is_named(model, name):
    with pytest.raises(ConfigError, match=r"There is no adapter (None|3)"):
        model.set_adapter(name)
    with pytest.raises(ConfigError, match=r"There is no adapter (None|3)"):
        model(X, adapter_names=["first", "first", name])


@pytest.mark.parametrize("config", [{"r": 2}, PeftConfig(), None])
def test_a_config_is_one_of_a_method(model, config):
    with pytest.raises(ConfigError, match="The config of a method is needed"):
        model.add_adapter("third", config)
