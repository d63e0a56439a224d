"""A problem whose space needs an importance map: layers and sites by importance, and rules."""

from functools import lru_cache
from typing import Any

from bound_problems import anatomy, bound_problem
from importance_maps import with_importance

from autopeft.backbone.anatomy import Anatomy
from autopeft.searchers.base import Problem

RANKING = (3, 1, 5, 4, 0, 2)
HIDDEN = 48

BLOCK: dict[str, Any] = {
    "methods": {
        "lora": {
            "rank": {"choice": [0, 1, 2, 4, 8]},
            "sites": ["query", "value", "up", "down"],
            "layers": {"mode": "importance", "of": "sites", "score": "sensitivity"},
        },
        "serial_adapter": {"size": {"choice": [0, 2, 8]}},
        "prefix": {"length": {"choice": [0, 4]}},
    },
    "layers": {"mode": "importance"},
    "sparsity": {
        "rule": {"choice": ["none", "ist", "spt"]},
        "keep": {"choice": [0.25, 0.5]},
        "budget": {"choice": [0.5, 1.0]},
    },
    "training": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
}


@lru_cache(maxsize=1)
def measured_anatomy() -> Anatomy:
    """Six narrow layers; the map is made once."""
    scores = ("fisher", "sensitivity", "activation")
    return with_importance(anatomy(HIDDEN), scores=scores, ranking=RANKING)


def importance_problem(**changes: Any) -> Problem:
    return bound_problem(BLOCK, measured_anatomy(), **changes)
