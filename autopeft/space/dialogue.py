"""A point as a dialogue: dimensions are asked for one by one, and only where they mean something.

Optimisers that learn a space while they walk through it need that form. What is asked for is what
`Layout.canonical` reads, so there is no second rule of what is active: a method that is switched
off is asked for nothing more, and shared layers only once some method needs them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from autopeft.space.dimension import Dimension
from autopeft.space.layout import Layout
from autopeft.space.schema import Scalar

Choose: TypeAlias = Callable[[Dimension], Scalar]
"""Gives a legal value of a dimension."""


class _Answers(Mapping[str, Scalar]):
    """Values of all dimensions, each asked for when it is first read."""

    def __init__(self, layout: Layout, choose: Choose) -> None:
        self._dimensions = {dimension.name: dimension for dimension in layout.dimensions}
        self._choose = choose
        self.given: dict[str, Scalar] = {}

    def __getitem__(self, name: str) -> Scalar:
        if name not in self.given:
            self.given[name] = self._choose(self._dimensions[name])
        return self.given[name]

    def __contains__(self, name: object) -> bool:
        return name in self._dimensions

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)


def dialogue(layout: Layout, choose: Choose) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The canonical point that the answers give, and the answers in the order of the questions.

    The answers hold more than the point where one switches a method off, or where the sites or
    layers of a method come out empty; the point is then the same as without the method.

    Raises:
        SpaceError: An answer is not legal.
    """
    answers = _Answers(layout, choose)
    point = layout.canonical(answers)
    return point, answers.given


def answers(layout: Layout, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What a dialogue asks on the way to a point, with the answers; the shortest there is."""
    explicit = layout.explicit(point)
    return dialogue(layout, lambda dimension: explicit[dimension.name])[1]
