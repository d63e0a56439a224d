"""PEFT methods: one file each, one registry.

Importing this package imports every file in it, and each method registers itself: a new method is
one new file, and nothing else.
"""

from importlib import import_module
from pkgutil import iter_modules

from autopeft.methods.base import Method, registry
from autopeft.methods.lane_operator import LaneOperator, Place

__all__ = ["LaneOperator", "Method", "Place", "registry"]

for _found in sorted(found.name for found in iter_modules(__path__)):
    import_module(f"{__name__}.{_found}")
