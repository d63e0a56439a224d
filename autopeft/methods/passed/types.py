"""The types of `peft` 0.21 that are passed through, and what `peft`'s own code does not say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from autopeft.space.schema import Scalar

NAME: Final = "default"
"""Of the adapter within `peft`'s model."""

Side: TypeAlias = Literal["in", "out"]

Where: TypeAlias = Literal[
    "linear", "norm", "attention", "layers", "experts", "embeddings", "prompt", "prefix"
]


@dataclass(frozen=True, eq=False)
class PeftType:
    """One type; each exists once, and is itself alone.

    Attributes:
        name: As in `peft.PeftType`.
        about: What it trains.
        size: The parameter that is its size, or "".
        where: What it sits on; or what it puts before every text, tokens ("prompt") or keys and
            values of every layer ("prefix").
        divides: Parameters that have to divide widths of a linear map, and which ones.
        even: Those of them that are even as well.
        shared: Whether places of a group share trained tensors, or what is trained at one depends
            on the others' widths.
        ends: Whether it shares tensors among modules that are told to it by the same end of a
            name, so that full names would share nothing.
        reads_batch: As the method's.
        keeps: Whether it saves anything beside what it trains: random factors, indices.
        weighs: Whether it has to see weights to be built at all, so that empty ones do not do.
        dense: Whether it builds a matrix of a weight's size while it runs.
        random: Whether it draws numbers in training without dropout.
        transposed: Whether it adapts transformers' `Conv1D` maps.
        fixed: Parameters that are not left to the user, and their values.
        telling: Those of them at whose defaults `peft` would train something else.
        choices: Legal texts of a parameter, where they are not those that `peft` lists.
        refused: By parameter, texts that `peft` takes and that are not legal here, with why.
        numbers: Parameters that are lists of whole numbers, written as a text.
        folders: Parameters that are lists of folders, written as a text.
    """

    name: str
    about: str
    size: str = "r"
    where: Where = "linear"
    divides: Mapping[str, tuple[Side, ...]] = field(default_factory=dict)
    even: tuple[str, ...] = ()
    shared: bool = False
    ends: bool = False
    reads_batch: bool = False
    keeps: bool = False
    weighs: bool = False
    dense: bool = False
    random: bool = False
    transposed: bool = False
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    telling: tuple[str, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


_BOTH: tuple[Side, ...] = ("in", "out")

_UNREAD = "peft's AdaLoRA starts alike whatever the name: true says it"

_FACTORS = ("gaussian", "olora", "pissa", "pissa_niter_N", "orthogonal", "mica")
"""What LoRA's factors may start from."""

_OF_DATA = {
    "eva": "without batches of the task's texts, of which peft takes the activations' SVD in a "
    "call of its own, it is what true says",
    "corda": "peft takes it from covariances of the task's activations, which a call of its own "
    "has to have left on the modules",
    "lora_ga": "without gradients of the task's loss, which a call of peft's own has to have left "
    "on the modules, it is what true says",
    "loftq": "it fits a weight that peft quantises with it, and peft's types sit on unquantised "
    "weights here",
}
"""What a type starts from that is not there while an adapter is built."""

TYPES = (
    PeftType(
        "ADAPTION_PROMPT",
        "prompts beside the attention of the last layers, each behind a gate that starts at 0",
        size="adapter_len",
        where="attention",
        transposed=True,
    ),
    PeftType(
        "ADALORA",
        "a low-rank update as an SVD at its initial rank, kept orthogonal by a penalty",
        size="init_r",
        weighs=True,
        transposed=True,
        fixed={"total_step": 1, "r": 8},
        refused={"init_lora_weights": dict.fromkeys((*_FACTORS, *_OF_DATA), _UNREAD)},
    ),
    PeftType(
        "ADAMSS",
        "low-rank updates of clusters of a weight's rows in its singular space",
        keeps=True,
        weighs=True,
        dense=True,
        fixed={"use_asa": False},
    ),
    PeftType("BEFT", "a bias on the outputs", size=""),
    PeftType(
        "BOFT",
        "orthogonal butterfly factors on the outputs",
        size="boft_block_size",
        divides={"boft_block_size": ("in",)},
        dense=True,
    ),
    PeftType(
        "C3A",
        "block-circulant updates",
        size="block_size",
        divides={"block_size": _BOTH},
        dense=True,
    ),
    PeftType(
        "CARTRIDGE",
        "keys and values before those of all layers, the first of them frozen",
        size="num_virtual_tokens",
        where="prefix",
        keeps=True,
    ),
    PeftType("DEFT", "a decomposed projection and its re-injection", dense=True, transposed=True),
    PeftType("DELORA", "a low-rank update of bounded norm", keeps=True),
    PeftType(
        "FOURIERFT",
        "a few coefficients of an update's Fourier transform",
        size="n_frequency",
        dense=True,
        transposed=True,
    ),
    PeftType(
        "FROD",
        "rotations in a joint singular space of all adapted maps",
        keeps=True,
        size="sparse_rate",
        shared=True,
        weighs=True,
        dense=True,
        transposed=True,
        fixed={"progressbar": False},
    ),
    PeftType("GLORA", "scales, shifts and low-rank factors of weight, input and bias", dense=True),
    PeftType(
        "GRALORA",
        "low-rank updates of the weight's blocks",
        divides={"gralora_k": _BOTH},
        transposed=True,
    ),
    PeftType("HIRA", "a low-rank factor on the weight's entries", dense=True, transposed=True),
    PeftType("HRA", "Householder reflections of the inputs", dense=True),
    PeftType(
        "IA3",
        "factors on outputs, or on the inputs of the last map of an FFN",
        size="",
        transposed=True,
    ),
    PeftType(
        "LILY",
        "low-rank factors shared by layers, with experts that a batch mixes by its mean",
        shared=True,
        ends=True,
        reads_batch=True,
    ),
    PeftType("LN_TUNING", "norms", size="", where="norm"),
    PeftType("LOHA", "a Hadamard product of two low-rank updates", dense=True),
    PeftType("LOKR", "a Kronecker product", dense=True),
    PeftType(
        "LORA", "a low-rank update", transposed=True, refused={"init_lora_weights": _OF_DATA}
    ),
    PeftType("MISS", "shards that share one matrix of expanded rows", dense=True),
    PeftType(
        "MULTITASK_PROMPT_TUNING",
        "tokens before the text, times a low-rank factor of the one task",
        size="num_virtual_tokens",
        where="prompt",
        fixed={"num_tasks": 1, "prompt_tuning_init": "RANDOM"},
    ),
    PeftType(
        "OFT",
        "orthogonal blocks on the inputs",
        size="oft_block_size",
        divides={"oft_block_size": ("in",)},
        dense=True,
        fixed={"r": 0},
    ),
    PeftType(
        "OSF",
        "the weight but for its leading singular directions",
        size="effective_rank",
        dense=True,
    ),
    PeftType("PEANUT", "a weight-aware network that makes the update", dense=True),
    PeftType("POLY", "a router's mixture of low-rank skills", fixed={"n_tasks": 1}),
    PeftType(
        "PREFIX_TUNING",
        "keys and values before those of all layers",
        size="num_virtual_tokens",
        where="prefix",
    ),
    PeftType(
        "PROMPT_TUNING",
        "tokens before the text",
        size="num_virtual_tokens",
        where="prompt",
        choices={"prompt_tuning_init": ("RANDOM", "SAMPLE_VOCAB")},
    ),
    PeftType("PSOFT", "a rotation within the weight's principal space", dense=True),
    PeftType(
        "PVERA",
        "scales of frozen random factors, sampled",
        keeps=True,
        random=True,
        transposed=True,
        fixed={"save_projection": True},
    ),
    PeftType(
        "P_TUNING",
        "tokens before the text, which an encoder makes in training",
        size="num_virtual_tokens",
        where="prompt",
    ),
    PeftType(
        "RANDLORA",
        "scales of many frozen random bases",
        keeps=True,
        shared=True,
        dense=True,
        transposed=True,
        fixed={"save_projection": True},
    ),
    PeftType(
        "ROAD",
        "rotations of pairs of outputs",
        size="",
        divides={"group_size": ("out",)},
        even=("group_size",),
    ),
    PeftType(
        "SHADOW",
        "a small decoder beside the model, whose state corrects what its layers read",
        where="layers",
        keeps=True,
        shared=True,
        fixed={"auxiliary_loss_weight": 0.0, "shadow_model": "mirror"},
        telling=("auxiliary_loss_weight",),
    ),
    PeftType("SHIRA", "single weights, chosen at random", keeps=True, weighs=True, dense=True),
    PeftType(
        "SUPERTUNING",
        "single weights of the largest or smallest magnitude",
        keeps=True,
        size="",
        dense=True,
    ),
    PeftType(
        "TINYLORA",
        "a few scalars within the weight's singular space",
        keeps=True,
        size="u",
        shared=True,
        transposed=True,
        fixed={"save_projection": True},
        choices={"init_weights": ("uniform",)},
        refused={"init_weights": {"false": "peft trains from memory that nothing was put in"}},
    ),
    PeftType(
        "TRAINABLE_TOKENS",
        "embeddings of single tokens",
        size="",
        where="embeddings",
        numbers=("token_indices",),
    ),
    PeftType(
        "UNILORA",
        "one vector for all low-rank factors",
        keeps=True,
        size="theta_d_length",
        shared=True,
        transposed=True,
        fixed={"save_indices": True},
    ),
    PeftType(
        "VBLORA",
        "low-rank factors mixed from one bank of vectors",
        shared=True,
        divides={"vector_length": _BOTH},
        transposed=True,
        fixed={"save_only_topk_weights": False},
    ),
    PeftType(
        "VERA",
        "scales of frozen random factors",
        keeps=True,
        transposed=True,
        fixed={"save_projection": True},
    ),
    PeftType(
        "WAVEFT",
        "a few coefficients of an update's wavelet transform",
        size="n_frequency",
        dense=True,
        transposed=True,
    ),
    PeftType(
        "XLORA",
        "a router over LoRA adapters that were trained before, which it mixes token by token",
        size="",
        where="experts",
        keeps=True,
        random=True,
        shared=True,
        folders=("adapters",),
    ),
)
"""All of them, by name."""
