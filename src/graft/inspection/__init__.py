"""What a base model is made of, and what an adapter would do to it, before anything is attached.

`inspect` returns data; the command `graft inspect` prints it. `tree` folds layers that are alike,
`report` asks what a config hits and what it costs.
"""

from graft.inspection.report import AdapterReport, Inspection, PatternHits, inspect
from graft.inspection.tree import Node, Weight, fold_paths, module_tree

__all__ = [
    "AdapterReport",
    "Inspection",
    "Node",
    "PatternHits",
    "Weight",
    "fold_paths",
    "inspect",
    "module_tree",
]
