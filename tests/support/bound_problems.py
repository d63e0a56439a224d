"""Problems on the spaces that come with autopeft, bound to a small encoder; nothing is trained."""

from collections.abc import Mapping
from typing import Any

from autopeft.backbone.anatomy import Anatomy, Layer, Norm, Site
from autopeft.configuration import Configuration
from autopeft.counting import site_params, trainable_params
from autopeft.methods import registry
from autopeft.searchers.base import Problem
from autopeft.space.library import load_space
from autopeft.space.space import Point
from autopeft.sparsity import rules
from autopeft.study.records import ObjectiveFrame

HIDDEN, LAYERS = 384, 6


def anatomy(hidden: int = HIDDEN) -> Anatomy:
    square, inner = (hidden, hidden), 4 * hidden
    widths = dict.fromkeys(("query", "key", "value", "output"), square)
    widths |= {"up": (hidden, inner), "down": (inner, hidden)}
    layers = tuple(
        Layer(
            i,
            f"{i}",
            {r: Site(i, r, f"{i}.{r}", *w) for r, w in widths.items()},
            f"{i}.self",
            {r: Norm(i, r, f"{i}.{r}", hidden, True) for r in ("attention_norm", "ffn_norm")},
        )
        for i in range(LAYERS)
    )
    return Anatomy("bert", layers, hidden, inner, 12, 12, hidden // 12, 22_700_000)


def bound_problem(
    source: str | Mapping[str, Any], body: Anatomy | None = None, **changes: Any
) -> Problem:
    """The problem on a space; on an anatomy of MiniLM's widths, without a map, unless given."""
    body = body or anatomy()
    schemas = registry.schemas()
    space = load_space(source, schemas=schemas, rules=rules.schemas())
    bound = space.bind(body.shape(frozenset(schemas)))
    params = ObjectiveFrame("trainable_params", "min", "log10", worst=2e6, best=768)

    def build(point: Point) -> Configuration:
        plain = bound.assignment(point)
        defaults = {"learning_rate": 2e-4, "weight_decay": 0.0, "warmup_ratio": 0.06}
        return Configuration.from_dict({**plain, "training": defaults | plain["training"]})

    fields: dict[str, Any] = {
        "space": bound,
        "anatomy": body,
        "frame": (ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0), params),
        "build": build,
        "known": lambda c: {"trainable_params": float(trainable_params(c, body))},
        "site_params": lambda c: site_params(c, body),
        "feasible": lambda c: trainable_params(c, body) <= 2e6,
        "flops": lambda c: float(trainable_params(c, body)),
        "n_validation": 500,
        "seed": 0,
        "initial": 8,
    }
    return Problem(**(fields | changes))
