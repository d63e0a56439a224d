"""What a fault says of a method's name that nobody has registered."""

from collections.abc import Iterable

from autopeft.space.faults import nearest
from autopeft.space.spellings import METHOD_SPELLINGS

PREFIX = "peft:"
"""Of the names of HF `peft`'s own types."""

NOT_PASSED = {
    "CPT": "peft's type refuses every task but language modelling: write `prompt`",
}
"""Types of `peft` 0.21 that are not passed through, with the reason."""


def listed(names: Iterable[str]) -> str:
    """Names of methods for a fault: `peft`'s types, dozens of them, as one."""
    names = tuple(names)
    own = [name for name in names if not name.startswith(PREFIX)]
    passed = len(own) < len(names)
    return ", ".join([*own, *([f"{PREFIX}<TYPE> (see `autopeft methods`)"] if passed else [])])


def absent_methods() -> dict[str, str]:
    """Types of `peft` that a space may not name: name -> reason."""
    return {PREFIX + kind: why for kind, why in NOT_PASSED.items()}


def why_unknown(name: str, known: Iterable[str], *, say: str) -> str:
    """Why a name is no method's, or which one a foreign or misspelt name means; or "".

    Args:
        name: What was written.
        known: The registered methods.
        say: How a name is proposed: "write {}".
    """
    known = tuple(known)
    if name.startswith(PREFIX) and (kind := name.removeprefix(PREFIX).upper()) in NOT_PASSED:
        return NOT_PASSED[kind]
    ours = METHOD_SPELLINGS.get(name, "")
    ours = ours if ours in known else nearest(name, known)
    return say.format(ours) if ours else ""
