"""SPT: a parameter budget goes to the weights that matter most (arXiv 2303.08566).

The highest tau weights, over all matrices that the configuration trains, are taken. A matrix that
has at least 1 / threshold as many of them as its structured method has parameters keeps that
method; all others train their own weights of the tau alone. SPT sweeps tau in steps of 20,000 and
keeps what is nearest to a budget; here tau is the largest of all whose exact parameter count,
structured and single weights together, is within the budget. An importance map keeps the highest
weights of a matrix only: one all of whose kept weights are taken keeps its method in any case.
"""

import math
from fractions import Fraction

from autopeft.backbone.anatomy import LINEAR_ROLES, SUBLAYERS, Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration, Group
from autopeft.methods.units import MEASURED
from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.ranking import Price, ranking
from autopeft.sparsity.structured import parts_of, place_of, remembered

SCORES = (*(score for score in MEASURED if score != "gradient_sum"), "magnitude")


class Spt(Plain):
    """The rule `spt`."""

    schema = RuleSchema(
        "spt",
        parameters=(
            ParameterSchema("budget", "float", default=1.0, minimum=1e-6, maximum=1.0),
            ParameterSchema("threshold", "float", default=10.0, minimum=1e-3),
            ParameterSchema("score", "str", default="sensitivity", choices=SCORES),
        ),
        methods=("lora", "parallel_adapter", "serial_adapter"),
        measured=True,
    )
    source = "He et al. 2023, Sensitivity-Aware Visual PEFT, arXiv 2303.08566; ziplab/SPT"

    def resolved(self, configuration: Configuration, anatomy: Anatomy) -> Configuration:
        """See `autopeft.sparsity.spt`.

        Raises:
            BackboneError: There is no importance map, or it lacks a matrix.
        """
        anatomy.measured()
        return _resolved(configuration, anatomy)


@remembered
def _resolved(configuration: Configuration, anatomy: Anatomy) -> Configuration:
    settings = dict(configuration.sparsity)
    parts = parts_of(configuration, anatomy, (*LINEAR_ROLES, *SUBLAYERS))
    keys = sorted(parts.matrices)
    sizes = {key: _size(key, anatomy) for key in keys}
    threshold, score = Fraction(str(settings["threshold"])), str(settings["score"])
    order = ranking(anatomy.measured(), score)
    kept = order.kept(keys)
    enough = {key: min(promoted_at(parts.params(key), threshold), kept[key]) for key in keys}
    prices = {key: Price(enough[key], parts.params(key) - (enough[key] - 1)) for key in keys}
    budget = math.floor(Fraction(str(settings["budget"])) * parts.total)
    counts = order.bought(keys, prices, budget) if keys else {}
    groups = list(parts.others)
    for key, number in counts.items():
        if number >= enough[key]:
            groups += [part.group for part in parts.matrices[key]]
        elif number:
            groups.append(single_weights(key, number / sizes[key], score))
    return Configuration.of(groups, training=dict(configuration.training))


def promoted_at(params: int, threshold: Fraction) -> int:
    """Sensitive weights from which a matrix keeps a structured method of so many parameters."""
    return max(1, math.ceil(params / threshold))


def _size(key: Key, anatomy: Anatomy) -> int:
    place = place_of(key, anatomy)
    return place.d_in * place.d_out


def single_weights(key: Key, density: float, score: str) -> Group:
    """A share of a matrix's weights, those of the highest scores."""
    layer, role = key
    return Group.of(
        "sparse",
        (layer,),
        (role,),
        density=density,
        granularity="weight",
        score=score,
        smallest=False,
    )


rules.register(Spt())
