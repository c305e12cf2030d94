from __future__ import annotations

from conformance.families import FAMILIES
from graft import LoraConfig, PrefixTuningConfig, get_peft_model
from graft.adapt.status import get_layer_status, get_model_status
from graft.config import TaskType

BERT = next(family for family in FAMILIES if family.name == "Bert")


def make_model():
    task = TaskType.SEQ_CLS
    model = get_peft_model(BERT.model(task), LoraConfig(task_type=task, r=2), "low")
    model.add_adapter("prefix", PrefixTuningConfig(task_type=task, num_virtual_tokens=3))
    return model


def test_every_place_is_listed():
    model = make_model()
    places = {status.name: status for status in get_layer_status(model)}
    assert set(places) == {*model.targeted_module_names, "classifier", "prompt_encoder"}
    query = places["bert.encoder.layer.0.attention.self.query"]
    assert query.module_type == "Linear"
    assert query.enabled
    assert query.active_adapters == query.available_adapters == ["low"]
    assert query.merged_adapters == []
    assert query.requires_grad == {"low": True}
    assert query.devices == {"low": ["cpu"]}
    assert places["classifier"].available_adapters == ["low", "prefix"]
    assert places["prompt_encoder"].module_type == "PrefixTuning"
    assert places["prompt_encoder"].active_adapters == []


def test_the_status_follows_the_model():
    model = make_model()
    model.set_adapter("prefix")
    model.set_requires_grad("low", False)
    places = {status.name: status for status in model.get_layer_status()}
    query = places["bert.encoder.layer.0.attention.self.query"]
    assert query.active_adapters == []
    assert query.requires_grad == {"low": False}
    assert places["prompt_encoder"].active_adapters == ["prefix"]
    model.merge_adapter(["low"])
    places = {status.name: status for status in model.get_layer_status()}
    assert places[query.name].merged_adapters == ["low"]


def test_the_model_as_a_whole():
    model = make_model()
    model.set_requires_grad("prefix", False)
    status = get_model_status(model)
    assert status == model.get_model_status()
    assert status.base_model_type == "BertForSequenceClassification"
    assert status.peft_types == {"low": "LORA", "prefix": "PREFIX_TUNING"}
    assert (status.trainable_params, status.total_params) == model.get_nb_trainable_parameters()
    assert status.num_adapter_layers == len(model.targeted_module_names)
    assert status.enabled
    assert status.active_adapters == ["low"]
    assert status.merged_adapters == []
    assert status.available_adapters == ["low", "prefix"]
    assert status.requires_grad == {"low": True, "prefix": False}
    assert status.devices == {"low": ["cpu"], "prefix": ["cpu"]}
    model.disable_adapter_layers()
    assert not model.get_model_status().enabled
