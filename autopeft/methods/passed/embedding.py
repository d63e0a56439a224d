"""TRAINABLE_TOKENS as a method: rows of the table of input tokens, below the first layer.

Its places are those of layer 0, since that is where its lane leaves the trunk.
"""

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.build import Target
from autopeft.methods.passed.counts import ModuleShape
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.parameters import numbers_of


class PassedEmbedding(Passed):
    """The type that trains embeddings of tokens."""

    modalities: tuple[str, ...] = ("text",)
    reached: Reached = "attention"

    def carried_by(self, anatomy: Anatomy) -> str:
        """There is one table of tokens."""
        return "" if anatomy.embeddings else "its table of tokens was not recognised"

    def _modules(self, group: Group, layer: int, anatomy: Anatomy) -> list[ModuleShape]:
        table = anatomy.embeddings
        if table is None:
            raise ValueError(f"{self.name} was asked of a backbone that does not carry it")
        target = Target(table.module, self.name)
        return [ModuleShape(target, table.tokens, table.width, bias=False, form="table")]

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Layers, texts that are no list of tokens, and tokens that there are not."""
        return [*first_layer_faults(group), *self._token_faults(group, anatomy)]

    def _token_faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        given = str(group["token_indices"])
        last = anatomy.embeddings.tokens - 1 if anatomy.embeddings else 0
        try:
            wrong = [n for n in numbers_of(given) if not 0 <= n <= last]
        except ValueError:
            wrong = [-1]
        if not wrong:
            return []
        allowed = f"numbers of tokens from 0 to {last}, such as `101 102, 1000-1099`"
        return [Fault("configuration", f"{self.name}.token_indices", given, allowed)]

    def count(self, group: Group, place: Place) -> int:
        """n d, n the number of tokens and d the width of an embedding."""
        return len(numbers_of(str(group["token_indices"]))) * place.d_out

    def frozen_work(self, group: Group, place: Place) -> int:
        """None: embeddings are looked up."""
        return 0

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """The table once more, with the rows put in, and its gradient."""
        return Kept(reads=False, weights=2 * place.d_in * place.d_out)


def first_layer_faults(group: Group) -> list[Fault]:
    """Other layers than the first, for what stands below it."""
    if group.layers == (0,):
        return []
    given, hint = ", ".join(map(str, group.layers)), "write `layers: [0]`"
    allowed = "layer 0 alone, below which it stands"
    return [Fault("configuration", f"{group.method}.layers", given, allowed, hint)]
