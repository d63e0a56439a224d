"""What is told of `peft`'s types: the paper that each is from, and how many scalars it trains.

`peft` 0.21 names most papers in its configuration classes or documentation. Counts are written in
Python, of a type's parameters and the widths of a map; they are not what is counted with (an
adapter is built for that, see `counts`), and a test compares both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class About:
    """What is told of a type.

    Attributes:
        paper: Its short name and number, as far as `peft` or the paper says.
        count: Scalars trained at a linear map or a norm: of its parameters, `d_in`, `d_out`, the
            smaller one of these `m`, and for a Kronecker product `a b` and `c e`, its factors'
            sizes. "" where the method itself says it.
        once: Scalars beside them once for all maps of a group; "" for none.
        more: Parameters that add to them where they are set, with what they add.
        words: What else there is to know.
    """

    paper: str
    count: str = ""
    once: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    words: str = ""

    def told(self) -> str:
        """Its count in words; "" where the method says it."""
        if not self.count:
            return ""
        each = [] if self.count == "0" else [_plain(self.count)]
        each += [f"{_plain(self.once)} once"] if self.once else []
        each += [f"{_plain(added)} more with {name}" for name, added in self.more.items()]
        return ", ".join(each) + (f"; {self.words}" if self.words else "")


def _plain(formula: str) -> str:
    """A formula as mathematics writes it."""
    return re.sub(
        r"\bint\((.*)\)$", r"\1, rounded down", formula.replace(" * ", " ").replace("//", "/")
    )


ABOUT: Mapping[str, About] = {
    "ADALORA": About("AdaLoRA, arXiv 2303.10512", count="init_r * (d_in + d_out + 1)"),
    "ADAMSS": About("AdaMSS, NeurIPS 2025", count="subspace_rank * (num_subspaces * r + d_out)"),
    "ADAPTION_PROMPT": About("LLaMA-Adapter, arXiv 2303.16199"),
    "BEFT": About("BEFT, arXiv 2509.15974", count="d_out"),
    "BOFT": About("BOFT, arXiv 2311.06243", count="boft_block_size * d_in + d_out"),
    "C3A": About(
        "Circular convolution adapter (C3A), arXiv 2407.19342", count="d_in * d_out // block_size"
    ),
    "CARTRIDGE": About("Cartridges, arXiv 2506.06266"),
    "DEFT": About("peft names no paper", count="r * (d_in + d_out)", words="r d_out with para"),
    "DELORA": About("DeLoRA, arXiv 2503.18225", count="r * (d_in + d_out) + 1"),
    "FOURIERFT": About("FourierFT, arXiv 2405.03003", count="n_frequency"),
    "FROD": About(
        "FRoD, doi 10.1609/aaai.v40i31.39813", count="d_in + int(sparse_rate * d_in * d_in)"
    ),
    "GLORA": About(
        "GLoRA, arXiv 2306.07967",
        count="2 * r * (d_in + d_out) + r * (d_in + 1) + 2",
        words="less where a part is no LoRA",
    ),
    "GRALORA": About("GraLoRA, arXiv 2505.20355", count="(r + hybrid_r) * (d_in + d_out)"),
    "HIRA": About("HiRA, ICLR 2025", count="r * (d_in + d_out)"),
    "HRA": About("Householder reflection adaptation (HRA), arXiv 2405.17484", count="r * d_in"),
    "IA3": About("(IA)^3, arXiv 2205.05638", count="d_out", words="d_in at `down`"),
    "LILY": About(
        "Lily, arXiv 2407.09946",
        count="r * (d_in + num_B)",
        once="num_B * r * d_out",
        words="once in all layers, d_in r once in stride_A of them",
    ),
    "LN_TUNING": About(
        "LayerNorm tuning, arXiv 2312.11420", count="d_out", words="d_out more for a shift"
    ),
    "LOHA": About("LoHa of FedPara, arXiv 2108.06098", count="2 * r * (d_in + d_out)"),
    "LOKR": About(
        "LoKr of LyCORIS, arXiv 2309.14859",
        count="a * b + r * (c + e)",
        words="c e in place of r (c + e) from r = max(c, e) / 2 on; d_out = a c, d_in = b e, as "
        "square as they divide",
    ),
    "LORA": About(
        "LoRA, arXiv 2106.09685",
        count="r * (d_in + d_out)",
        more={"use_dora": "d_out", "lora_bias": "d_out"},
    ),
    "MISS": About(
        "MiSS, arXiv 2409.15371", count="r * d_out", words="r mini_r with init_weights: mini"
    ),
    "MULTITASK_PROMPT_TUNING": About("Multitask prompt tuning, arXiv 2303.02861"),
    "OFT": About(
        "OFT, arXiv 2306.07280",
        count="d_in * (oft_block_size - 1) // 2",
        words="one block's with block_share",
    ),
    "OSF": About(
        "Sculpting Subspaces (OSF), arXiv 2504.07097",
        count="(m - effective_rank) * (d_in + d_out + 1)",
        words="m the smaller width, half of it being effective_rank unless that is told",
    ),
    "PEANUT": About("PEANuT, arXiv 2410.01870", count="2 * r * (d_out + depth * r)"),
    "POLY": About("Poly, arXiv 2202.13914", count="n_skills * (r * (d_in + d_out) + n_splits)"),
    "PREFIX_TUNING": About("Prefix-Tuning, arXiv 2101.00190"),
    "PROMPT_TUNING": About("Prompt tuning, arXiv 2104.08691"),
    "PSOFT": About(
        "PSOFT, arXiv 2505.11235", count="r * (r - 1) // 2 + psoft_mag_a * r + psoft_mag_b * r"
    ),
    "PVERA": About("PVeRA, arXiv 2512.07703", count="2 * r + d_out"),
    "P_TUNING": About("P-tuning, arXiv 2103.10385"),
    "RANDLORA": About(
        "RandLoRA, arXiv 2502.00987", count="ceil(m / r) * (r + m)", words="m the smaller width"
    ),
    "ROAD": About(
        "RoAd, arXiv 2409.00119", count="d_out", words="2 d_out with road_2, 4 d_out with road_4"
    ),
    "SHADOW": About("ShadowPEFT, arXiv 2604.19254"),
    "SHIRA": About("SHiRA, arXiv 2406.13175", count="r * (d_in + d_out)"),
    "SUPERTUNING": About(
        "Super-Tuning, arXiv 2607.09287",
        count="int((1 - sparsity) * d_in * d_out)",
        more={"r": "r * (d_in + d_out)"},
    ),
    "TINYLORA": About(
        "TinyLoRA, arXiv 2602.04118", count="u", words="u once for maps that weight_tying ties"
    ),
    "TRAINABLE_TOKENS": About("peft names no paper"),
    "UNILORA": About("Uni-LoRA, arXiv 2506.00799", count="0", once="theta_d_length"),
    "VBLORA": About(
        "VB-LoRA, arXiv 2405.15179",
        count="r * num_vectors * (d_in + d_out) // vector_length",
        once="num_vectors * vector_length",
    ),
    "VERA": About("VeRA, arXiv 2310.11454", count="r + d_out"),
    "WAVEFT": About("WaveFT, arXiv 2505.12532", count="n_frequency"),
    "XLORA": About("X-LoRA, arXiv 2402.07148"),
}
"""By type."""
