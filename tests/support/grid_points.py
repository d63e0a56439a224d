"""What a fake space that is a grid of choices answers like a bound one.

Its points hold every dimension; one with a single value is no dimension, and asked for by nobody.
"""

from collections.abc import Callable, Mapping
from typing import Any

from autopeft.space.dimension import Dimension

Choices = Mapping[str, tuple[Any, ...]]


def dimensions(choices: Choices) -> tuple[Dimension, ...]:
    return tuple(_dimension(name, values) for name, values in choices.items() if len(values) > 1)


def _dimension(name: str, values: tuple[Any, ...]) -> Dimension:
    if values == (False, True):
        return Dimension.flag(name)
    return Dimension(name, "ordered", values)


def dialogue(
    choices: Choices, choose: Callable[[Dimension], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    answers = {dimension.name: choose(dimension) for dimension in dimensions(choices)}
    return {name: answers.get(name, values[0]) for name, values in choices.items()}, answers


def answers(choices: Choices, point: Mapping[str, Any]) -> dict[str, Any]:
    return {dimension.name: point[dimension.name] for dimension in dimensions(choices)}


def legal(choices: Choices, point: Mapping[str, Any]) -> dict[str, Any] | None:
    """The point, or None where it does not lie on the grid."""
    if point.keys() != choices.keys():
        return None
    return dict(point) if all(point[name] in values for name, values in choices.items()) else None
