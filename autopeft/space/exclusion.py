"""Methods that exclude each other: `one_of: all`, or a list of them.

A configuration then holds one of them, and beside it any of the others. Where all exclude each
other, a configuration has one method, and each may set training values of its own: methods differ
in the learning rate that they need by two orders of magnitude.
"""

from collections.abc import Sequence
from typing import Any

from autopeft.space.binding import MethodSpace
from autopeft.space.faults import Faults
from autopeft.space.leaves import Choice, IntRange
from autopeft.space.training_parser import TrainingLeaves

ALL = "all"


def read_exclusive(raw: Any, methods: Sequence[MethodSpace], faults: Faults) -> tuple[str, ...]:
    """Names of the methods that exclude each other, sorted.

    Args:
        raw: What the file holds under `one_of`; [] where it holds nothing.
        methods: Those of the space.
        faults: Where faults are noted.
    """
    known = sorted(method.schema.name for method in methods)
    if raw == []:
        return ()
    if raw != ALL and not isinstance(raw, list):
        faults.add("one_of", raw, f"{ALL}, or a list of the space's methods")
        return ()
    names = known if raw == ALL else raw
    for index, name in enumerate(names):
        if name not in known:
            faults.unknown("one_of", name, known)
        elif name in names[:index]:
            faults.add("one_of", name, "each method once", "remove the second one")
    if len(names) < 2:
        faults.add("one_of", names, "two methods or more: one excludes none")
    for method in methods:
        if method.schema.name in names:
            _check_presence(method, faults)
    return tuple(name for name in known if name in names)


def _check_presence(method: MethodSpace, faults: Faults) -> None:
    """A method that `one_of` switches has no other switch."""
    key, hint = (
        f"methods.{method.schema.name}",
        "remove it: `one_of` says whether the method is on",
    )
    if method.switched:
        faults.add(f"{key}.present", "a choice", "nothing, as the method is in one_of", hint)
    size = dict(method.leaves).get(method.schema.size)
    absent = isinstance(size, Choice) and 0 in size.values
    if absent or (isinstance(size, IntRange) and size.low == 0):
        faults.add(f"{key}.{method.schema.size}", 0, "sizes above 0, as it is in one_of", hint)


def check_own_training(
    methods: Sequence[MethodSpace],
    exclusive: Sequence[str],
    training: TrainingLeaves,
    faults: Faults,
) -> None:
    """Note training values of a method that is not always alone, or that the space has too."""
    general = {parameter.name for parameter, _ in training}
    for method in methods:
        for parameter, _ in method.training:
            key = f"methods.{method.schema.name}.training.{parameter.name}"
            if len(exclusive) < len(methods):
                hint = f"write `one_of: {ALL}`, or give it in the space's own `training`"
                allowed = "nothing, as the method may be beside others"
                faults.add(key, "a value of its own", allowed, hint)
            elif parameter.name in general:
                hint = "remove it from the space's own `training`"
                faults.add(key, "a value of its own", "one of the two", hint)
