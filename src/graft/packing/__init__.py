"""Batches without padding: rows one behind the other, each attending to itself alone.

`layout` says where rows stand and what they see, `attention` hands it to `segments`, which holds
them apart, or on a GPU to `varlen`. `forward` runs the unchanged code of a causal language model on
them, with `head` and `loss` where there is a label; `layers` those of any other model, whose
embeddings and heads go on seeing padded rows, and `pairs` an encoder-decoder's with its loss.
`proof` tries on a model whether it can be packed at all. What goes into a batch, and what becomes
of its gradients, is `training`'s.
"""

from graft.packing.attention import Unpackable, attention_configs
from graft.packing.forward import PackedForward
from graft.packing.layers import PackedLayers, without_cache
from graft.packing.pairs import PackedPairs
from graft.packing.proof import packed_forward, proven_forward, proven_layers
from graft.packing.varlen import why_padded

__all__ = [
    "PackedForward",
    "PackedLayers",
    "PackedPairs",
    "Unpackable",
    "attention_configs",
    "packed_forward",
    "proven_forward",
    "proven_layers",
    "why_padded",
    "without_cache",
]
