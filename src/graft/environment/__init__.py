"""What graft runs on: Python, torch and its devices, packages, folders, variables, hubs.

`examine` returns facts and problems, each with its cure, as data; the command `graft doctor`
prints them. A module holds the facts of one kind and the problems that can be read from them;
`report` puts them together. Nothing here changes anything.
"""

from graft.environment.hubs import Hub
from graft.environment.machine import Folder, Machine, Python
from graft.environment.packages import Package
from graft.environment.problem import Problem
from graft.environment.report import Environment, examine
from graft.environment.speed import Product
from graft.environment.torch_build import Device, Torch

__all__ = [
    "Device",
    "Environment",
    "Folder",
    "Hub",
    "Machine",
    "Package",
    "Problem",
    "Product",
    "Python",
    "Torch",
    "examine",
]
