"""Sparsity rules: one file each, one registry.

A rule says which of a configuration's parameters train, and when. Importing this package fills
`rules`. A new rule is one new file, named in the import below.
"""

from autopeft.sparsity import adalora, id3, ist, lisa, none, sparse, spt
from autopeft.sparsity.base import Rule, rules

__all__ = ["Rule", "adalora", "id3", "ist", "lisa", "none", "rules", "sparse", "spt"]
