"""`python -m graft.demo N` prints N rows of the demo's task, each an object on a line."""

import json
import sys

from graft.demo.corpus import task_items

for row in task_items(0, int(sys.argv[1]), "train"):
    print(json.dumps(row))
