"""How large a study's steps are: what runs at once, and what the memory model is told of it."""

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a scalar."""

EVALUATION_TOKENS = {"cpu": 1024}
DEFAULT_EVALUATION_TOKENS = 8192
"""Tokens of the lanes of a pass in a batch of an evaluation, padding included. On a CPU, larger
batches leave its caches and gain nothing."""

CPU_PASS_BYTES = 3 << 20
"""The widest activations of a pass on a CPU, per thread. MiniLM, 32 x 14 tokens (2.6 MiB a lane),
milliseconds per lane and step with 1, 2, 3 (or 4) and 8 lanes, single probes: 384, 417, 418 and
446 on one thread, 175, 163, 171 and 168 on two."""

ALL_LANES = 1 << 16


@dataclass(frozen=True)
class Overhead:
    """What a device's memory holds of a pack beside its tensors.

    Attributes:
        share: Of what a step's tensors take, and the trunk's before them: holes that the allocator
            leaves between them.
        recomputed: Of what a step's and the lanes' tensors take, in place of that where layers
            are recomputed, and tensors do not share a heap.
        recomputed_bf16: The same under autocast.
        fixed: Bytes that a process's first steps take for good.
    """

    share: float = 0.0
    recomputed: float = 0.0
    recomputed_bf16: float = 0.0
    fixed: int = 0

    def beside(
        self, step_bytes: int, lanes_bytes: int, shape: "StepShape", *, trunk_bytes: int = 0
    ) -> int:
        """Bytes beside a step's and the lanes' tensors.

        Args:
            step_bytes: A step's tensors at their most.
            lanes_bytes: The lanes' own.
            shape: Of the step.
            trunk_bytes: The trunk's tensors, gone by then.
        """
        if not shape.checkpointing:
            return round((step_bytes + trunk_bytes) * self.share) + self.fixed
        share = self.recomputed_bf16 if shape.compute == "bf16" else self.recomputed
        return round((step_bytes + lanes_bytes) * share) + self.fixed


@dataclass(frozen=True)
class StepShape:
    """What a study's steps have in common.

    Attributes:
        rows: Examples per lane in one forward pass (the micro-batch).
        tokens: Tokens of the longest row, padding included.
        evaluated: Examples of an evaluation: fewer than a batch of it holds need less; 0 = many.
        evaluation_tokens: Tokens of the lanes of a pass in a batch of it.
        compute: "fp32", or "bf16" for autocast.
        checkpointing: Whether a lane's layers are recomputed in the backward pass.
        fused_attention: Whether attention keeps no scores (all of torch's kernels but `math`).
        logits: A language model's logits that exist at once (see `token_losses`), of all lanes
            together; 0 for other tasks.
        overhead: What the device loses, see `RESIDENT_OVERHEAD`.
        lanes_per_pass: Lanes that run together, the others after them; 0 = all.
        key_vectors: Keys that come before a row's own, of prefixes or prompts, are filled up to
            whole multiples of so many.
        first_token: Whether the last layer runs on the first token but for keys and values.
    """

    rows: int
    tokens: int
    evaluated: int = 0
    evaluation_tokens: int = DEFAULT_EVALUATION_TOKENS
    compute: str = "fp32"
    checkpointing: bool = False
    fused_attention: bool = True
    logits: int = 0
    overhead: Overhead = Overhead()
    lanes_per_pass: int = 0
    key_vectors: int = 1
    first_token: bool = False

    def whole_vectors(self, keys: int) -> int:
        """Room that so many keys before a row's own take up."""
        return -(-keys // self.key_vectors) * self.key_vectors


@dataclass(frozen=True)
class Weights:
    """How the backbone lies in memory.

    Attributes:
        bytes_each: Of a weight that is not quantised: 4 (float32) or 2 (bfloat16).
        quantization: "none", "int8" or "nf4", of the layers' linear maps.
        all_bytes: Of the whole backbone, see `autopeft.backbone.memory.backbone_bytes`.
    """

    bytes_each: int = FLOAT32
    quantization: str = "none"
    all_bytes: int = 0


def evaluation_tokens(device: str) -> int:
    """Tokens of an evaluation batch on a type of device, see `EVALUATION_TOKENS`."""
    return EVALUATION_TOKENS.get(device, DEFAULT_EVALUATION_TOKENS)


def lanes_of_passes(kinds: Sequence[tuple[int, int]], size: int) -> list[list[int]]:
    """Which lanes of a pack run together: at most so many, of one kind.

    Args:
        kinds: Of each lane, in stream order; see `counting.pass_kind`.
        size: At most; 0 = any number.

    Returns:
        Positions, in stream order within each.
    """
    together = []
    for kind in sorted(set(kinds)):
        own = [position for position, each in enumerate(kinds) if each == kind]
        step = size or len(own)
        together += [own[start : start + step] for start in range(0, len(own), step)]
    return together


def lanes_per_pass(
    device: str, *, rows: int, mean_tokens: float, intermediate_size: int, threads: int
) -> int:
    """Lanes of a pack that run through the backbone together, the others after them.

    On a GPU all of them: a pass is bound by launches. A CPU is bound by arithmetic, and several
    lanes' activations leave its caches: there, as many as `CPU_PASS_BYTES` hold.

    Args:
        device: A type of device.
        rows: Examples of a pass per lane.
        mean_tokens: Of an example.
        intermediate_size: The backbone's widest activation.
        threads: Of the process.
    """
    if device != "cpu":
        return ALL_LANES
    lane_bytes = rows * mean_tokens * intermediate_size * FLOAT32
    return max(1, int(threads * CPU_PASS_BYTES / lane_bytes))
