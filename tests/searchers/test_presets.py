"""Presets against the numbers of their papers, on a backbone of LLaMA-like proportions."""

from dataclasses import replace

import pytest
import tiny_backbones as tiny
from importance_maps import with_importance

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy, Layer
from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.methods import registry
from autopeft.searchers.baselines import LEARNING_RATES, baselines
from autopeft.searchers.presets import KNOWN, RECIPES, preset
from autopeft.space.schema import MethodSchema

REST = {"weight_decay": 0.0, "warmup_ratio": 0.06}
SCORES = ("gradient", "gradient_sum", "fisher", "activation")


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return with_importance(tiny.tiny_backbone("llama").anatomy, scores=SCORES)


def _configuration(name: str, anatomy: Anatomy) -> Configuration:
    return next(iter(baselines([name], anatomy, training=REST).values()))


def _wide(hidden: int, inner: int) -> Anatomy:
    """A layer of LLaMA-2-7B's proportions, sites alone."""
    plain = tiny.tiny_backbone("llama").anatomy
    width = {32: hidden, 48: inner, 16: hidden}
    sites = {
        role: replace(
            site, in_features=width[site.in_features], out_features=width[site.out_features]
        )
        for role, site in plain.layers[0].sites.items()
    }
    layers = (Layer(0, "layers.0", sites, "layers.0.self_attn"),)
    return replace(plain, layers=layers, hidden_size=hidden, intermediate_size=inner)


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_is_complete_counted_and_runs_at_every_rate(
    name: str, anatomy: Anatomy
) -> None:
    found = baselines([name], anatomy, training=REST)
    assert [c.training_value("learning_rate") for c in found.values()] == list(LEARNING_RATES)
    configuration = next(iter(found.values()))
    for group in configuration.groups:
        assert set(dict(group.settings)) == _expected(
            registry[group.method].schema, group.settings
        )
    assert counting.trainable_params(configuration, anatomy) > 0
    again = Configuration.from_dict(configuration.to_dict())
    assert (again, again.hash) == (configuration, configuration.hash)


def _expected(schema: MethodSchema, settings: tuple[tuple[str, object], ...]) -> set[str]:
    given = dict(settings)
    return {
        p.name
        for p in schema.parameters
        if (p.when is None or given.get(p.when[0]) == p.when[1])
        and p.is_said(given.get(p.name, p.default))
    }


def test_numbers_of_the_papers() -> None:
    # S2FT: 3 % of the 14,336 channels of LLaMA-3-8B's down maps, 56.4 M over 32 layers.
    eight = _wide(4096, 14336)
    s2ft = counting.trainable_params(_configuration("s2ft", eight), eight)
    assert s2ft * 32 == pytest.approx(56.4e6, rel=0.01)
    # Its script for LLaMA-2-7B: 2 of 32 heads of each output map, 2 % of the 11,008 channels.
    both = counting.site_params(
        _configuration("s2ft-heads", _wide(4096, 11008)), _wide(4096, 11008)
    )
    assert set(both) == {(0, "output"), (0, "down")}
    assert both[0, "down"] == 220 * 4096
    # DiaBlo: 70.3 M on LLaMA-2-7B.
    llama = _wide(4096, 11008)
    diablo = counting.trainable_params(_configuration("diablo", llama), llama)
    assert diablo * 32 == pytest.approx(70.3e6, rel=0.01)
    # SCT: 0.112 M in the 12 layers of ViT-B, 768 wide.
    vit = replace(tiny.tiny_backbone("vit").anatomy, hidden_size=768)
    sct = counting.trainable_params(_configuration("sct", vit), vit)
    assert sct / len(vit.layers) * 12 == 12 * (96 * 96 + 96)
    # GIFT-SW: 128 columns of every map, 174 M; of down's 11,008 here as many in share.
    gift = _configuration("gift-sw", llama)
    counts = counting.site_params(gift, llama)
    assert counts[0, "query"] == 128 * 4096
    assert counts[0, "up"] == 128 * 11008


def test_shares_of_bert_base_are_those_of_the_paper() -> None:
    """AutoPEFT's table of results gives every baseline's share of BERT-base's parameters."""
    plain = _wide(768, 3072)
    bert = replace(plain, n_kv_heads=12, head_dim=64)
    for name, percent in (
        ("autopeft-serial", 0.81),
        ("autopeft-parallel", 0.81),
        ("autopeft-prefix", 0.17),
        ("autopeft-unipelt", 1.25),
        ("autopeft-mam", 6.97),
    ):
        count = 12 * counting.trainable_params(_configuration(name, bert), bert)
        assert 100 * count / 109.5e6 == pytest.approx(percent, abs=0.02), name


def test_llm_adapters_sit_on_single_maps() -> None:
    """LLaMA-7B: the shares are those of DoRA's Table 1 (arXiv 2402.09353), adapters counted in."""
    llama, whole = _wide(4096, 11008), 6_738_415_616
    for name, sites, percent in (
        ("llm-adapters-series", {"down"}, 0.99),
        ("llm-adapters-parallel", {"up", "down"}, 3.54),
        ("llm-adapters-lora", {"query", "key", "value", "up", "down"}, 0.83),
    ):
        configuration = _configuration(name, llama)
        (group,) = configuration.groups
        assert set(group.sites) == sites
        count = 32 * counting.trainable_params(configuration, llama)
        assert 100 * count / (whole + count) == pytest.approx(percent, abs=0.005), name
    for form in ("series", "parallel"):
        (group,) = _configuration(f"llm-adapters-{form}", llama).groups
        assert group.method == "linear_adapter"
        assert (group["form"], group["activation"], group["size"]) == (form, "tanh", 256)


def test_spafits_strata() -> None:
    """Of 24 layers: 4 frozen, 5 with biases, 15 with LoRA and the biases that it leaves."""
    one = _wide(768, 3072)
    bert = replace(one, layers=tuple(replace(one.layers[0], index=i) for i in range(24)))
    layers = {
        (group.method, group.sites): group.layers
        for group in _configuration("spafit", bert).groups
    }
    assert layers == {
        ("bitfit", ("down", "gate", "output", "query", "up", "value")): tuple(range(4, 9)),
        ("bitfit", ("down", "gate", "output", "up")): tuple(range(9, 24)),
        ("lora", ("query", "value")): tuple(range(9, 24)),
    }


def test_budgets_are_those_of_lora(anatomy: Anatomy) -> None:
    lora = counting.trainable_params(_configuration("lora-r3", anatomy), anatomy)
    for name in ("speft-r3", "shira-r3"):
        assert counting.trainable_params(_configuration(name, anatomy), anatomy) == lora
    blocks = counting.trainable_params(_configuration("smt-r3", anatomy), anatomy)
    assert blocks % 16 == 0


def test_names_have_arguments(anatomy: Anatomy) -> None:
    by_score = preset("s2ft-activation", anatomy)
    assert by_score is not None
    assert by_score.groups[0]["score"] == "activation"
    assert {"speft", "speft-r<rank>", "s2ft-<score>", "diablo"} <= set(KNOWN)
    for name in ("speft-r0", "s2ft-r8", "diablo-r8", "smt-fisher", "s2ft-diagonal"):
        with pytest.raises(InputError, match="speft"):
            baselines([name], anatomy, training=REST)
