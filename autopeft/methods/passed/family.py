"""What all types of `peft` have in common as methods."""

from collections.abc import Hashable, Mapping

from torch import Tensor

from autopeft.configuration import Group
from autopeft.methods.base import Method, Start
from autopeft.methods.inherited import Unfolded
from autopeft.methods.lane_operator import LaneOperator, Place, Stack
from autopeft.methods.passed.about import ABOUT
from autopeft.methods.passed.parameters import schema_of
from autopeft.methods.passed.types import PeftType
from autopeft.space.method_names import PREFIX
from autopeft.space.schema import MethodSchema, Scalar


class PassedType(Unfolded):
    """The method `peft:<TYPE>`.

    Args:
        kind: The type.

    Attributes:
        kind: The type.
        whole: Why it has the whole model to itself, so that nothing stands beside it; or "".
        unheld: Why no adapter of `peft` holds what it has trained; or "".
    """

    whole = ""
    unheld = ""
    alone = True
    identity = "as peft starts it: the backbone, but of C3A, FOURIERFT, UNILORA and VBLORA"

    def __init__(self, kind: PeftType) -> None:
        self.kind, self.name = kind, PREFIX + kind.name
        self.peft_type = "" if self.unheld else kind.name
        self.reads_batch = kind.reads_batch
        self.source = f"{ABOUT[kind.name].paper}; HF peft 0.21"

    def __getattr__(self, name: str) -> MethodSchema:
        """`schema`: parameters and sites; the first look imports `peft`."""
        if name != "schema":
            raise AttributeError(f"{type(self).__name__} has no {name}")
        self.schema = schema_of(self.kind)
        return self.schema

    def stack_key(self, group: Group) -> Hashable:
        """Nothing stacks with anything."""
        return group

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Its own."""
        return dict(group.settings)

    def complete(self, group: Group) -> dict[str, Scalar]:
        """A group's settings, with those that it leaves out at their defaults."""
        defaults = {each.name: each.default for each in self.schema.parameters}
        told = {name: value for name, value in defaults.items() if value is not None}
        return told | dict(group.settings)

    # -- what a method with lanes has ---------------------------------------------------------

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """`peft` draws them, see `autopeft.training.lanes.passed`."""
        raise TypeError(f"{self.name} has no lanes")

    def operator(self, stack: Stack) -> LaneOperator:
        """There is none: `peft`'s own modules run in the pack."""
        raise TypeError(f"{self.name} has no lanes")


def whole_model(method: Method) -> str:
    """Why a method has the whole model to itself, so that nothing stands beside it; or ""."""
    return method.whole if isinstance(method, PassedType) else ""
