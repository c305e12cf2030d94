"""Bare parameters as layers, and the modules that use them in their own way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graft import LoraConfig, PeftModel, get_peft_model
from graft.adapt.parameters import ParameterView
from graft.adapt.structure import adaptable_layers, bare_parameters
from graft.errors import ConfigError, TargetError

E, I, O = 3, 5, 4  # noqa: E741


class Experts(nn.Module):
    """Stacks of matrices, and things beside them that are none."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = transposed
        shape = (E, I, O) if transposed else (E, O, I)
        self.up_proj = nn.Parameter(torch.randn(shape))
        self.down_proj = nn.Parameter(torch.randn(E, I, O))
        self.scale = nn.Parameter(torch.ones(O))

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj.mT if self.is_transposed else self.up_proj
        return torch.einsum("eoi,bi->bo", up, x) * self.scale


class Model(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.experts = Experts(transposed)
        self.gate = nn.Linear(I, O)
        self.table = nn.Embedding(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x) + self.gate(x)


def lora(**values) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "init_lora_weights": False, **values})


def test_bare_parameters_are_matrices_that_belong_to_no_layer():
    model = Model()
    found = bare_parameters(model)
    assert list(found) == ["experts.up_proj", "experts.down_proj"]
    view = found["experts.up_proj"]
    assert view.kind == "experts"
    assert view.is_bare
    assert view.site_path == "experts"
    assert (view.in_features, view.out_features) == (I, O)
    assert view.bias is None
    assert torch.equal(view.weight, model.experts.up_proj)
    assert ParameterView(nn.Linear(2, 3), "p", "weight").kind == "parameter"


def test_a_transposed_stack_is_read_and_written_as_it_is_stored():
    model = Model(transposed=True)
    view = bare_parameters(model)["experts.up_proj"]
    own = model.experts.up_proj
    assert torch.equal(view.weight, own.mT)
    matrix = torch.randn(E, O, I)
    view.write(matrix, None)
    assert torch.equal(model.experts.up_proj, matrix.mT)
    view.restore()
    assert model.experts.up_proj is own


@pytest.mark.parametrize("transposed", [False, True])
def test_every_expert_has_a_low_rank_update_of_its_own(transposed):
    model = get_peft_model(
        Model(transposed), lora(target_parameters=["experts.up_proj"], target_modules=["gate"])
    )
    adapter = model.adapter("default").layers["experts.up_proj"]
    a, b = adapter.lora_A, adapter.lora_B
    assert a.shape == (2 * E, I)
    assert b.shape == (O, 2 * E)
    plain = Model(transposed)
    plain.load_state_dict(model.base_model.state_dict())
    with torch.no_grad():
        for expert in range(E):
            # PEFT's layout: rows of A lie expert by expert, columns of B rank by rank.
            update = 1.5 * b[:, expert::E] @ a[2 * expert : 2 * expert + 2]
            own = plain.experts.up_proj[expert]
            own += update.T if transposed else update
        gate = model.adapter("default").layers["gate"]
        plain.gate.weight += 1.5 * gate.lora_B @ gate.lora_A
    x = torch.randn(6, I)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(x), plain(x), rtol=0, atol=1e-5)


def test_all_linear_reaches_experts():
    model = get_peft_model(Model(), LoraConfig(target_modules="all-linear"))
    assert set(model.adapter("default").layers) == {
        "gate",
        "experts.up_proj",
        "experts.down_proj",
    }
    config = model.peft_config["default"]
    assert config.target_modules == ["gate"]
    assert config.target_parameters == ["up_proj", "down_proj"]


def test_parameters_alone_are_targets_where_no_modules_are_said():
    model = get_peft_model(Model(), lora(target_parameters=["up_proj"]))
    assert list(model.adapter("default").layers) == ["experts.up_proj"]
    empty = get_peft_model(Model(), lora(target_parameters=["up_proj"], target_modules=[]))
    assert list(empty.adapter("default").layers) == ["experts.up_proj"]


def test_a_parameter_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(TargetError, match=r"'experts.up' matches no bare.*experts\.up_proj"):
        get_peft_model(Model(), lora(target_parameters=["experts.up"]))
    with pytest.raises(TargetError, match=r"'gate.weight' matches no bare parameter"):
        get_peft_model(Model(), lora(target_parameters=["gate.weight"]))


def two_adapters(base: nn.Module, **values) -> PeftModel:
    model = get_peft_model(base, lora(**values), "first")
    model.add_adapter("second", lora(**values))
    return model.eval()


def test_rows_of_a_batch_have_their_own_parameters():
    model = two_adapters(Model(), target_parameters=["up_proj", "down_proj"])
    x = torch.randn(4, I)
    names = ["second", "__base__", "first", "second"]
    mixed = model(x, adapter_names=names)
    for row, name in enumerate(names):
        alone = model(x[row : row + 1], adapter_names=[name])
        torch.testing.assert_close(mixed[row], alone[0], rtol=0, atol=1e-6)
    model.set_adapter(["first", "second"])
    both = model(x)
    model.merge_adapter(["first"])
    torch.testing.assert_close(model(x), both, rtol=0, atol=1e-5)
    model.merge_adapter(["second"])
    torch.testing.assert_close(model(x), both, rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(x)[1:2], mixed[1:2], rtol=0, atol=1e-6)


def test_merging_parameters_is_undone_exactly():
    model = two_adapters(Model(), target_parameters=["up_proj"])
    own, before = model.experts.up_proj, model.experts.up_proj.clone()
    model.merge_adapter(["first", "second"])
    assert not torch.equal(model.experts.up_proj, before)
    model.unmerge_adapter()
    assert model.experts.up_proj is own
    assert torch.equal(own, before)
    assert model.merged_adapters == []


def test_parameters_stay_registered_and_come_back_after_an_error():
    model = get_peft_model(Model(), lora(target_parameters=["up_proj"]))
    names = [name for name, _ in model.base_model.named_parameters()]
    with pytest.raises(RuntimeError):
        model(torch.randn(2, I + 1))
    assert [name for name, _ in model.base_model.named_parameters()] == names
    assert isinstance(model.experts.up_proj, nn.Parameter)


def test_a_dropout_on_experts_drops_inputs_while_training_alone():
    model = get_peft_model(Model(), lora(target_parameters=["up_proj"], lora_dropout=0.5))
    x = torch.randn(4, I)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


# --- attention ------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, batch_first: bool = True, **values) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=batch_first, **values)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x)[0]


def test_attention_has_two_matrices_and_no_layers_of_its_own():
    views = adaptable_layers(Attention())
    assert list(views) == ["mha.in_proj_weight", "mha.out_proj.weight"]
    assert all(view.kind == "attention" for view in views.values())
    assert all(view.target_path == view.site_path == "mha" for view in views.values())
    assert views["mha.in_proj_weight"].disk_path == "mha"
    assert views["mha.out_proj.weight"].disk_path == "mha.base_layer.out_proj"
    assert bare_parameters(Attention()) == {}
    assert adaptable_layers(Attention(kdim=3, vdim=3)) == {}  # three projections: not supported


def test_both_matrices_of_attention_are_adapted():
    model = get_peft_model(Attention(), lora(target_modules=["mha"])).eval()
    plain = Attention().eval()
    plain.load_state_dict(model.base_model.state_dict())
    layers = model.adapter("default").layers
    with torch.no_grad():
        for path, own in (
            ("mha.in_proj_weight", plain.mha.in_proj_weight),
            ("mha.out_proj.weight", plain.mha.out_proj.weight),
        ):
            own += 1.5 * layers[path].lora_B @ layers[path].lora_A
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(x), plain(x), rtol=0, atol=1e-5)


def test_rows_of_attention_have_their_own_adapters():
    model = two_adapters(Attention(), target_modules=["mha"])
    x = torch.randn(3, 6, 8)
    names = ["second", "first", "__base__"]
    mixed = model(x, adapter_names=names)
    for row, name in enumerate(names):
        alone = model(x[row : row + 1], adapter_names=[name])
        torch.testing.assert_close(mixed[row], alone[0], rtol=0, atol=1e-6)


def test_attention_with_rows_in_its_second_dimension_takes_one_adapter_at_a_time():
    model = two_adapters(Attention(batch_first=False), target_modules=["mha"])
    x = torch.randn(4, 4, 8)
    with pytest.raises(ConfigError, match=r"mha has its rows in the second .*batch_first=True"):
        model(x, adapter_names=["first", "second", "first", "second"])
    assert not torch.equal(model(x, adapter_names=["first"] * 4), model.base_model(x))
