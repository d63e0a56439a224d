"""The searchers by the names that `search.searcher` takes."""

import difflib
from collections.abc import Callable, Mapping

from autopeft.errors import Fault, InputError
from autopeft.searchers.base import Problem, Searcher


def _random(problem: Problem) -> Searcher:
    from autopeft.searchers.random import RandomSearcher

    return RandomSearcher(problem)


def _evolution(problem: Problem) -> Searcher:
    from autopeft.searchers.evolution import EvolutionSearcher

    return EvolutionSearcher(problem)


def _gp(problem: Problem) -> Searcher:
    from autopeft.searchers.gp import GPSearcher

    return GPSearcher(problem)


def _reference(problem: Problem) -> Searcher:
    from autopeft.searchers.reference.searcher import ReferenceSearcher  # imports BoTorch

    return ReferenceSearcher(problem)


def _optuna(name: str) -> Callable[[Problem], Searcher]:
    def make(problem: Problem) -> Searcher:
        from autopeft.searchers.optuna_bridge import OptunaSearcher  # imports Optuna

        return OptunaSearcher(problem, name)

    return make


SEARCHERS: Mapping[str, Callable[[Problem], Searcher]] = {
    "evolution": _evolution,
    "gp": _gp,
    "random": _random,
    "reference": _reference,
    **{name: _optuna(name) for name in ("gpsampler", "nsga2", "nsga3", "tpe")},
}
"""Every searcher; each is imported when it is made, as some take seconds to import."""


def make_searcher(name: str, problem: Problem) -> Searcher:
    """The searcher called `name`, for one problem.

    Raises:
        InputError: There is no such searcher; the nearest name is given.
    """
    if name not in SEARCHERS:
        near = difflib.get_close_matches(name, SEARCHERS, 1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise InputError(
            Fault("search", "search.searcher", repr(name), ", ".join(sorted(SEARCHERS)), hint)
        )
    return SEARCHERS[name](problem)
