"""The packer: which trials of a cohort train together.

A pure function of the trials, the backbone and the size, so that the composition of a pack that
was lost can be found again without having been stored.
"""

import math
from collections.abc import Sequence

from autopeft.backbone.anatomy import Anatomy
from autopeft.counting import first_layer
from autopeft.methods import registry
from autopeft.study.records import TrialRecord


def grouped(
    trials: Sequence[TrialRecord], anatomy: Anatomy, *, size: int
) -> list[list[TrialRecord]]:
    """As few packs as the size allows, of sizes that differ by one at most.

    Trials of methods without a lane axis (types of HF `peft`) are packs of one, before all others.

    Lanes with near branch points share a pack: the trunk of a pack reaches up to its highest
    branch point, and a lane that leaves early makes no use of it. The packs with the lowest branch
    points come first: they need most memory, so that a size that is too large shows at once.

    Args:
        trials: In any order.
        anatomy: The backbone.
        size: Most lanes of a pack, at least 1.

    Returns:
        Packs in the order in which they train; each by number.
    """
    ordered = sorted(trials, key=lambda t: (first_layer(t.configuration, anatomy), t.number))
    alone = [[trial] for trial in ordered if _is_alone(trial)]
    return [*alone, *_shared_out([trial for trial in ordered if not _is_alone(trial)], size)]


def _is_alone(trial: TrialRecord) -> bool:
    return any(registry[name].alone for name in trial.configuration.methods)


def _shared_out(ordered: Sequence[TrialRecord], size: int) -> list[list[TrialRecord]]:
    """Trials that can share packs, in packs."""
    if not ordered:
        return []
    count = math.ceil(len(ordered) / size)
    small, larger = divmod(len(ordered), count)
    packs, start = [], 0
    for index in range(count):
        stop = start + small + (index < larger)
        packs.append(sorted(ordered[start:stop], key=lambda trial: trial.number))
        start = stop
    return packs
