"""Memory of a pack in training, in closed form: nothing is built, run or imported for it.

A pack holds the backbone, its lanes with their moments, and what its largest pass needs (see
`pass_memory`). `benchmarks/memory` holds the model against measured peaks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.counting import first_layer, pass_kind, training_params
from autopeft.sparsity import rules
from autopeft.training.kept_memory import KeptMemory
from autopeft.training.pass_memory import PassMemory
from autopeft.training.step_shape import FLOAT32, Overhead, StepShape, Weights, lanes_of_passes

FIXED_BYTES = 24
"""Per scalar that is kept but not trained: an index as int64, and on a CPU the same in CSR form,
by rows and by columns."""

PERSISTENT_BYTES = 24
"""Per trained scalar: weight, gradient and two moments in float32, its lane (int32), its decay."""

UPDATE_BYTES = 32
"""Per trained scalar while the optimiser steps: the new weights and moments before they count."""

MARGIN = 0.15
"""Share of a device's free memory that is left alone: for what allocators lose to fragments, for
other processes, and for the model's own error."""

_FIXED = 12 << 20
"""7-9 MiB of code that the first steps read and of objects, as packs of a row of 8 tokens show;
and 3-5 MiB that MKL keeps from its first larger matrix products on."""

RESIDENT_OVERHEAD = Overhead(share=0.32, recomputed=0.15, recomputed_bf16=0.15, fixed=_FIXED)
"""On the CPU, of a process whose heap is set up as `execution.heap` says. The share is holes
between a step's tensors. Where layers are recomputed, a runner gives larger tensors pages of their
own, and there are no holes: what is left are smaller tensors, the ends of pages, and what kernels
take for themselves. A GPU's own allocator counts what it hands out."""

GLIBC_OVERHEAD = Overhead(share=0.6, recomputed=0.15, recomputed_bf16=0.15, fixed=_FIXED)
"""On the CPU, of a process that trains with glibc's heap as it is: holes are larger, and never the
same twice where layers are recomputed."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose.

    Attributes:
        backbone: Frozen weights.
        lanes: Trained weights, gradients and moments, heads among them.
        activations: What a step keeps for its backward pass.
        working: What comes and goes beside it at the peak: a layer's running tensors and
            gradients, the trunk, logits; or an update; or an evaluation, whichever needs most.
        overhead: What is neither: see `Overhead`.
    """

    backbone: int
    lanes: int
    activations: int
    working: int
    overhead: int

    @property
    def total(self) -> int:
        """All together."""
        return self.backbone + self.lanes + self.activations + self.working + self.overhead

    @property
    def training(self) -> int:
        """All but the backbone: what a pack adds to a process that has loaded it."""
        return self.total - self.backbone

    def to_dict(self) -> dict[str, int]:
        """As plain JSON, in bytes."""
        return {
            "backbone_bytes": self.backbone,
            "lanes_bytes": self.lanes,
            "activations_bytes": self.activations,
            "working_bytes": self.working,
            "overhead_bytes": self.overhead,
            "total_bytes": self.total,
        }


def estimate(
    lanes: Sequence[Configuration],
    anatomy: Anatomy,
    *,
    head_params: int,
    shape: StepShape,
    weights: Weights,
) -> MemoryEstimate:
    """The peak of a pack of these lanes.

    Args:
        lanes: What they train, at least one.
        anatomy: The backbone.
        head_params: Parameters of one task head.
        shape: Of a step.
        weights: How the backbone lies in memory.
    """
    distinct = set(lanes)
    first = {lane: first_layer(lane, anatomy) for lane in distinct}
    kind = {lane: pass_kind(lane, anatomy) for lane in distinct}
    order = sorted(lanes, key=first.__getitem__)
    of_passes = lanes_of_passes([kind[lane] for lane in order], shape.lanes_per_pass)
    alike = Counter(tuple(order[position] for position in own) for own in of_passes)
    passes = {own: PassMemory(KeptMemory(own, anatomy, shape, weights)) for own in alike}
    trained = {own: p.own.trained_params() + head_params * len(own) for own, p in passes.items()}
    of_rules = sum(
        size * training_params(lane, anatomy)
        for lane in lanes
        if (size := rules.of(lane).state_bytes)
    )
    fixed = sum(alike[own] * each.own.fixed_params() for own, each in passes.items())
    shared: dict[tuple[int, str], int] = {}
    for each in passes.values():
        for at, size in each.own.shared_params().items():
            shared[at] = max(size, shared.get(at, 0))
    kept = max(each.kept() for each in passes.values())
    running = max(each.peak() + each.logits() for each in passes.values())
    updated = max(trained.values()) * UPDATE_BYTES
    lanes_bytes = (
        sum(alike[own] * count for own, count in trained.items()) * PERSISTENT_BYTES
        + fixed * FIXED_BYTES
        + sum(shared.values()) * FLOAT32
        + of_rules
    )
    others = max(updated, *(each.evaluating() for each in passes.values()))
    working = max(running, others) - kept
    return MemoryEstimate(
        backbone=weights.all_bytes,
        lanes=lanes_bytes,
        activations=kept,
        working=working,
        overhead=shape.overhead.beside(
            kept + working,
            lanes_bytes,
            shape,
            trunk_bytes=round(max(each.trunk() for each in passes.values())),
        ),
    )


def largest_pack(
    configuration: Configuration, needs: Callable[[Sequence[Configuration]], int], available: int
) -> int:
    """Lanes of the largest pack of one configuration that fits; 0 where not even one does.

    Args:
        configuration: What every lane trains.
        needs: Bytes that a pack needs.
        available: Bytes that there are, the margin taken off.
    """
    size = 0
    for exponent in reversed(range(_MOST_LANES.bit_length())):
        larger = size + (1 << exponent)
        if larger <= _MOST_LANES and needs([configuration] * larger) <= available:
            size = larger
    return size


_MOST_LANES = 256
