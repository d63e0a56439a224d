"""PEFT methods: one file each, one registry.

Importing this package fills `registry`. A new method is one new file, named in the import below.
"""

from autopeft.methods import lora, parallel_adapter, prefix, serial_adapter, sparse
from autopeft.methods.base import LaneOperator, Method, Place, registry

__all__ = [
    "LaneOperator",
    "Method",
    "Place",
    "lora",
    "parallel_adapter",
    "prefix",
    "registry",
    "serial_adapter",
    "sparse",
]
