"""What is measured: packs on backbones of several architectures, on a CPU and on a GPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        backbone: A name of `backbones.CONFIGS`.
        placement: Of the lanes: LoRA in `all` layers, in the `top` third or in the `last` layer,
            or `mixed`.
        lanes: Of the pack.
        rows: Of a batch.
        tokens: Of a row.
        compute: `fp32`, or `bf16` for autocast.
        checkpointing: Whether layers are recomputed.
        held: Type of the backbone's weights, of those that are not quantised.
        quantization: `none`, `int8` or `nf4`.
        device: A torch device.
        limit_gib: What the process may take of a GPU, backbone included; 0 for all of it.
    """

    backbone: str
    placement: str
    lanes: int
    rows: int
    tokens: int
    compute: str
    checkpointing: bool = False
    held: str = "float32"
    quantization: str = "none"
    device: str = "cpu"
    limit_gib: float = 0.0

    @property
    def computing(self) -> str:
        """How it computes, in words."""
        words = [self.compute]
        if self.held != "float32":
            words.append(f"held in {self.held}")
        if self.quantization != "none":
            words.append(self.quantization)
        if self.checkpointing:
            words.append("checkpointed")
        if self.limit_gib:
            words.append(f"of {self.limit_gib:g} GiB")
        return ", ".join(words)


CPU = (
    Case("minilm", "all", 1, 32, 32, "fp32"),
    Case("minilm", "all", 4, 32, 32, "fp32"),
    Case("minilm", "top", 8, 32, 32, "fp32"),
    Case("minilm", "mixed", 8, 16, 64, "fp32"),
    Case("bert-base", "all", 2, 8, 64, "fp32"),
    Case("bert-base", "mixed", 4, 8, 64, "fp32"),
    Case("bert-base", "all", 4, 8, 64, "bf16"),
    Case("llama", "all", 2, 4, 128, "fp32"),
    Case("minilm", "all", 4, 32, 128, "fp32"),
    Case("bert-base", "all", 4, 16, 128, "fp32"),
    Case("gpt2", "all", 4, 8, 64, "fp32"),
    Case("t5-small", "all", 4, 8, 64, "fp32"),
    Case("gpt2", "all", 4, 8, 64, "fp32", checkpointing=True),
    Case("minilm", "mixed", 8, 16, 64, "fp32", checkpointing=True),
    Case("bert-base", "all", 4, 16, 128, "fp32", checkpointing=True),
    Case("llama", "all", 4, 8, 128, "fp32", checkpointing=True),
    Case("llama", "mixed", 4, 8, 128, "bf16", checkpointing=True),
)

SMALL = (
    Case("minilm", "last", 1, 8, 32, "fp32"),
    Case("minilm", "last", 1, 32, 32, "fp32"),
    Case("minilm", "top", 1, 16, 32, "fp32"),
)
"""One lane, in a layer or two: half of it is what a process takes beside tensors."""

GPU = (
    Case("minilm", "mixed", 32, 16, 64, "fp32", device="cuda"),
    Case("bert-base", "mixed", 8, 16, 64, "bf16", device="cuda"),
    Case("bert-base", "mixed", 8, 16, 64, "bf16", held="bfloat16", device="cuda"),
    Case("llama-1b", "all", 4, 2, 256, "bf16", checkpointing=True, held="bfloat16", device="cuda"),
    Case(
        "llama-1b",
        "all",
        4,
        2,
        256,
        "bf16",
        checkpointing=True,
        held="bfloat16",
        quantization="int8",
        device="cuda",
    ),
    Case(
        "llama-8b",
        "all",
        2,
        2,
        256,
        "bf16",
        checkpointing=True,
        held="bfloat16",
        quantization="nf4",
        device="cuda",
        limit_gib=24.0,
    ),
)

CASES = {"cpu": CPU, "quick": CPU[:4], "small": SMALL, "gpu": GPU}
"""By the name of a set."""
