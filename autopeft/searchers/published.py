"""Configurations that publications compare with or recommend: adapters, prefixes, LoRA, mixtures.

`presets` offers them by name as baselines. Sizes that a paper gives for one width are shares of
it; what is not the paper's is said beside each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group

AUTOPEFT_BOTTLENECK, AUTOPEFT_PREFIX, AUTOPEFT_RANK = 16, 10, 8
"""d / 16, tokens, rank: 0.81, 0.17 and 0.27 % of BERT-base, as its Table 1 says."""

MAM_BOTTLENECK, MAM_PREFIX = 2, 30
"""d / 2 and tokens: 6.97 % of BERT-base there."""

LLM_BOTTLENECK, LLM_RANK = 16, 32
"""256 of LLaMA's 4,096, and a rank."""

STRATA = (4 / 24, 9 / 24)
"""SPAFIT-4-9: where biases, and where LoRA begins, of BERT-large's 24 layers."""


@dataclass(frozen=True)
class Published:
    """One configuration, but for its training values.

    Attributes:
        make: Its groups on a backbone; the argument is a rank, or "".
        source: Paper.
        rank: The rank where none is named; "" where there is none to name.
    """

    make: Callable[[Anatomy, str], tuple[Group, ...]]
    source: str
    rank: str = ""


def _all(anatomy: Anatomy) -> range:
    return range(len(anatomy.layers))


def _sites(anatomy: Anatomy, *roles: str) -> list[str]:
    return [role for role in roles if role in anatomy.roles]


def _adapter(method: str, anatomy: Anatomy, share: int, *, scale: float) -> Group:
    size = max(1, anatomy.hidden_size // share)
    sites = [name for name in ("ffn",) if name in anatomy.sublayers]
    return Group.of(
        method, _all(anatomy), sites, size=size, activation="relu", scale=scale, dropout=0.0
    )


def _serial(anatomy: Anatomy) -> Group:
    return _adapter("serial_adapter", anatomy, AUTOPEFT_BOTTLENECK, scale=1.0)


def _parallel(anatomy: Anatomy, share: int = AUTOPEFT_BOTTLENECK) -> Group:
    return _adapter("parallel_adapter", anatomy, share, scale=4.0)


def _prefix(anatomy: Anatomy, length: int) -> Group:
    return Group.of("prefix", _all(anatomy), length=length, reparametrise=False)


def _lora(layers: Sequence[int], sites: Sequence[str], rank: int) -> Group:
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=0.0)


def _unipelt(anatomy: Anatomy, _: str) -> tuple[Group, ...]:
    """LoRA, a serial adapter and a prefix together, without UniPELT's gates."""
    lora = _lora(_all(anatomy), _sites(anatomy, "query", "value"), AUTOPEFT_RANK)
    return lora, _serial(anatomy), _prefix(anatomy, AUTOPEFT_PREFIX)


def _mam(anatomy: Anatomy, _: str) -> tuple[Group, ...]:
    """A wide parallel adapter at the FFN and a prefix at attention."""
    return _parallel(anatomy, MAM_BOTTLENECK), _prefix(anatomy, MAM_PREFIX)


def _llm_lora(anatomy: Anatomy, rank: str) -> tuple[Group, ...]:
    """At attention and FFN."""
    sites = _sites(anatomy, "query", "key", "value", "up", "down")
    return (_lora(_all(anatomy), sites, int(rank)),)


def _llm_adapter(form: str, *roles: str) -> Callable[[Anatomy, str], tuple[Group, ...]]:
    """At single maps of the FFN, as released; U begins at zero (see `linear_adapter`)."""

    def make(anatomy: Anatomy, _: str) -> tuple[Group, ...]:
        group = Group.of(
            "linear_adapter",
            _all(anatomy),
            _sites(anatomy, *roles),
            size=max(1, anatomy.hidden_size // LLM_BOTTLENECK),
            form=form,
            activation="tanh",
            scale=1.0,
            dropout=0.0,
        )
        return (group,)

    return make


def _spafit(anatomy: Anatomy, rank: str) -> tuple[Group, ...]:
    """Layers frozen, then with biases, then with LoRA at query and value and the other biases.

    Those of keys, whose gradient is zero, and of norms are left out.
    """
    n = len(anatomy.layers)
    first, second = (round(share * n) for share in STRATA)
    adapted = _sites(anatomy, "query", "value")
    biased = [role for role in _sites(anatomy, *LINEAR_ROLES) if role != "key"]
    groups = [
        (second > first, Group.of("bitfit", range(first, second), biased)),
        (
            True,
            Group.of("bitfit", range(second, n), [role for role in biased if role not in adapted]),
        ),
        (True, _lora(range(second, n), adapted, int(rank))),
    ]
    return tuple(group for used, group in groups if used)


_AUTOPEFT = "the baselines of AutoPEFT, arXiv 2301.12132, Table 1"
_LLM = "LLM-Adapters, arXiv 2304.01933: its best placements, by its `math_running_commands`"

PUBLISHED: Mapping[str, Published] = {
    "autopeft-serial": Published(lambda anatomy, _: (_serial(anatomy),), _AUTOPEFT),
    "autopeft-parallel": Published(lambda anatomy, _: (_parallel(anatomy),), _AUTOPEFT),
    "autopeft-prefix": Published(
        lambda anatomy, _: (_prefix(anatomy, AUTOPEFT_PREFIX),), _AUTOPEFT
    ),
    "autopeft-unipelt": Published(_unipelt, _AUTOPEFT),
    "autopeft-mam": Published(_mam, _AUTOPEFT),
    "llm-adapters-lora": Published(_llm_lora, _LLM, rank=str(LLM_RANK)),
    "llm-adapters-series": Published(_llm_adapter("series", "down"), _LLM),
    "llm-adapters-parallel": Published(_llm_adapter("parallel", "up", "down"), _LLM),
    "spafit": Published(_spafit, "SPAFIT, arXiv 2405.00201: SPAFIT-4-9", rank="8"),
}
