"""Rules that stand in for those of a release, where it has none of their name.

They do too little to be called sparsity, and enough to see that a rule was asked: what it comes to
depends on the importance map, or on the methods it is for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from made_up_rules import RULES

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.space.schema import RuleSchema
from autopeft.sparsity import rules
from autopeft.sparsity.base import Plain


class UpperHalf(Plain):
    """Leaves a configuration on the more important half of all layers, where it is there."""

    source = "made up"

    def __init__(self, schema: RuleSchema) -> None:
        self.schema = schema

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """Groups on layers of the upper half; all where nothing would be left."""
        if not self.schema.measured:
            return configuration
        ranking = anatomy.measured().layer_ranking("sensitivity")
        kept = set(ranking[: len(ranking) // 2])
        groups = [
            Group(g.method, layers, g.sites, g.settings)
            for g in configuration.groups
            if (layers := tuple(layer for layer in g.layers if layer in kept))
        ]
        return replace(configuration, groups=tuple(groups)) if groups else configuration


@contextmanager
def known_rules() -> Iterator[None]:
    """All rules of `made_up_rules`, or the release's own of the same name."""
    missing = [schema for name, schema in RULES.items() if name not in rules.names()]
    for schema in missing:
        rules.register(UpperHalf(schema))
    try:
        yield
    finally:
        for schema in missing:
            del rules._rules[schema.name]
