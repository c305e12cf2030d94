"""What a base model is made of, and what an adapter would do to it, before anything is attached.

`inspect` returns data; the command `graft inspect` prints it. `tree` folds layers that are alike,
`stored` reads the headers of files, `coverage` counts what patterns hit, `adapters` asks what a
config costs, `paths` tries a regular expression.
"""

from graft.inspection.adapters import AdapterReport, Suggestion, suggest
from graft.inspection.coverage import PatternHits, StackHits
from graft.inspection.folding import fold_paths, folded, ranges
from graft.inspection.paths import RegexTest
from graft.inspection.report import Inspection, inspect, unsaid_sizes
from graft.inspection.stored import Misfit, StoredWeights
from graft.inspection.tree import Node, Weight, module_tree

__all__ = [
    "AdapterReport",
    "Inspection",
    "Misfit",
    "Node",
    "PatternHits",
    "RegexTest",
    "StackHits",
    "StoredWeights",
    "Suggestion",
    "Weight",
    "fold_paths",
    "folded",
    "inspect",
    "module_tree",
    "ranges",
    "suggest",
    "unsaid_sizes",
]
