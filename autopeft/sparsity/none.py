"""No sparsity: everything trains at every step."""

from autopeft.space.schema import RuleSchema
from autopeft.sparsity.base import Plain, rules


class NoSparsity(Plain):
    """The rule `none`."""

    schema = RuleSchema("none")
    source = "the study's own methods"


rules.register(NoSparsity())
