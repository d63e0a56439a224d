"""The search problem of a recorded task, without its data and weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopeft.api import problem as problems
from autopeft.api.problem import Facts
from autopeft.backbone.request import BackboneRequest
from autopeft.backbone.skeleton import config_anatomy
from autopeft.searchers.base import Problem
from autopeft.study.definition import parse_definition
from benchmarks.quality.kept_importance import KEPT, kept_map

TOKENS = 10_000
"""FLOPs are compared with each other only, so any number of tokens will do."""


def task_problem(recorded: Mapping[str, Any], *, seed: int, initial: int) -> Problem:
    """The problem of a study that was recorded.

    Args:
        recorded: A table's metadata, as `tables.write_table` writes them.
        seed: The searcher's seed.
        initial: Trials of its start.
    """
    definition = parse_definition(
        {
            **recorded["definition"],
            "study": {"name": recorded["task"], "seed": seed},
            "search": {"initial": initial, "baselines": []},
            "budget": {"trials": 100_000, "wall_clock": None},
        },
        where=recorded["task"],
        base=None,
    )
    anatomy = config_anatomy(BackboneRequest(definition.model.name_or_path))
    if KEPT in recorded:
        anatomy = replace(anatomy, importance=kept_map(recorded[KEPT]))
    space = problems.bind_space(definition, anatomy)
    if space.hash != recorded["space_hash"]:
        text = f"{recorded['task']} was recorded in another space ({recorded['space_hash']})"
        raise ValueError(f"{text}; {definition.space} is {space.hash} now: record it again")
    facts = recorded["facts"]
    return problems.make_problem(
        definition,
        anatomy,
        space,
        Facts(
            constant_quality=facts["constant_quality"],
            best_quality=1.0,
            head_params=facts["head_params"],
            train_tokens=TOKENS,
            n_validation=facts["n_validation"],
        ),
    )
