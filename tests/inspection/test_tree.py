"""The tree of modules, in which equal layers are one."""

from __future__ import annotations

import torch
from torch import nn

from graft.inspection import Node, module_tree
from tiny import tiny_llama


def at(node: Node, *names: str) -> Node:
    for name in names:
        (node,) = [child for child in node.children if child.name == name]
    return node


def test_equal_layers_are_folded():
    model = tiny_llama()
    tree = module_tree(model)
    assert tree.parameters == sum(p.numel() for p in model.parameters())
    layers = at(tree, "model", "layers")
    (layer,) = layers.children
    assert (layer.name, layer.count) == ("0-1", 2)
    own = model.model.layers[0]
    assert layer.kind == type(own).__name__
    assert layer.parameters == sum(p.numel() for p in own.parameters())
    k_proj = at(layer, "self_attn", "k_proj")
    (weight,) = k_proj.weights
    assert (weight.name, weight.shape, weight.dtype) == ("weight", (8, 16), "float32")
    assert weight.tied_to is None


def test_layers_that_differ_are_not_folded():
    shapes = [nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(2, 3), nn.ReLU()]
    tree = module_tree(nn.Sequential(*shapes))
    assert [(n.name, n.kind, n.count) for n in tree.children] == [
        ("0,2-3", "Linear", 3),
        ("1", "Linear", 1),
        ("4", "ReLU", 1),
    ]
    half = module_tree(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).half()]))
    assert [n.count for n in half.children] == [1, 1]


def test_children_of_a_module_keep_their_names():
    """Only what stands in a list is folded."""
    pair = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert [n.name for n in module_tree(pair).children] == ["a", "b"]


def test_what_is_tied_counts_once():
    model = tiny_llama(tie_word_embeddings=True)
    tree = module_tree(model)
    assert tree.parameters == sum(p.numel() for p in model.parameters())
    head = at(tree, "lm_head")
    assert head.parameters == 0
    assert head.weights[0].tied_to == "model.embed_tokens.weight"


def test_what_an_adapter_adds_keeps_layers_apart():
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    tree = module_tree(model, {"1": 5, "3": 5})
    assert [(n.name, n.added) for n in tree.children] == [("0,2", 0), ("1,3", 5)]
    assert tree.added == 10


def test_the_shape_of_codes_is_that_of_what_they_stand_for():
    """Two codes of four bits in a byte."""
    quantised = nn.Linear(6, 4)
    quantised.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    (weight, bias) = module_tree(quantised).weights
    assert (weight.shape, weight.dtype) == ((4, 6), "uint8")
    assert (bias.shape, bias.dtype) == ((4,), "float32")
    assert module_tree(quantised).parameters == 6 * 4 + 4


def test_dtypes_of_files_come_before_those_of_the_model():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
    tree = module_tree(model, dtypes={"1.weight": "bfloat16"})
    assert [(n.name, n.weights[0].dtype) for n in tree.children] == [
        ("0,2", "float32"),
        ("1", "bfloat16"),
    ]
