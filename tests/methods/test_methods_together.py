"""Several methods at one map or norm, against dense float64 weights that share no code with them.

Each changes the frozen map by what it would change of it alone, but for those that act on what the
methods before them have made: docs/lanes.md says which, and in which order.
"""

from collections.abc import Callable, Mapping

import pytest
import tiny_backbones as tiny
import torch
from dense_models import frozen_maps, logits_of
from every_method import measured_backbone
from method_cases import TRAINING, configuration
from reference_files import REFERENCES, reference
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

Tensors = Mapping[str, Tensor]
LAYER, SITE = 1, "query"
NEUTRAL: Mapping[str, Callable[[Tensors], Tensors]] = {
    "ia3": lambda own: own,
    "road": lambda own: own,
    "ssf": lambda own: own,
    "boft": lambda own: {**own, "Q": torch.zeros_like(own["Q"])},
    "ether_plus": lambda own: {**own, "v": -own["u"]},
}
"""Methods that act on what those before them have made, each with its tensors less what it does to
the frozen map alone."""
FIRST = "lora"
"""With DoRA, which takes W for the frozen map's whatever else sits there."""


def _is_dense(name: str) -> bool:
    """Whether a method sits on linear maps, and its reference gives the map that it makes."""
    sites, path = registry[name].schema.sites, REFERENCES / f"{name}.py"
    on_maps = bool(sites) and set(sites) <= {*LINEAR_ROLES}
    return on_maps and path.exists() and "def dense" in path.read_text()


ON_MAPS = [name for name in sorted(registry.names()) if _is_dense(name)]


def _groups(names: list[str], backbone: Backbone) -> list[Group]:
    """One group of each method, all at one map."""
    given = {"lora": {"dora": True}, "snell": {"sparsity": 0.5}}
    return [
        configuration(
            name, backbone.anatomy, layers=[LAYER], sites=[SITE], **given.get(name, {})
        ).groups[0]
        for name in names
    ]


def _moved(backbone: Backbone, groups: list[Group]) -> tuple[Pack, Tensors]:
    """A solo pack in float64, all it trains moved by N(0, 0.1); its tensors by saved name."""
    lane = Lane(0, Configuration.of(groups, training=TRAINING))
    pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(3), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in pack.operators.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.1)
    return pack, pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)


def _together(backbone: Backbone, groups: list[Group], tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The dense map that all methods make, in the order in which they act."""
    weight, given = frozen_maps(backbone)[LAYER, SITE]
    bias = weight.new_zeros(weight.shape[1]) if given is None else given
    made, shift = weight, bias
    for group in sorted(groups, key=lambda each: (each.method != FIRST, each.method)):
        start = f"{group.method}.{LAYER}.{SITE}."
        own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        settings, dense = dict(group.settings) | {"site": SITE}, reference(group.method).dense
        changed, moved = dense(settings, own, weight, bias)
        then = torch.eye(len(bias), dtype=torch.float64)
        if group.method in NEUTRAL:
            then, _ = dense(settings, NEUTRAL[group.method](own), then, None)
        made = changed + (made - weight) @ then
        shift = moved + (shift - bias) @ then
    return made, shift


@pytest.mark.parametrize(
    ("names", "architecture"),
    [
        *(
            pytest.param(["lora", name], "bert", id=f"dora-{name}")
            for name in ON_MAPS
            if name != "lora"
        ),
        *(pytest.param(["bitfit", "hira", "svft", name], "bert", id=name) for name in NEUTRAL),
        pytest.param(ON_MAPS, "bert", id="all-bert"),
        pytest.param(ON_MAPS, "llama", id="all-llama"),
        pytest.param(ON_MAPS, "gpt2", id="all-gpt2"),
    ],
)
def test_methods_at_one_map_make_one_dense_map(names: list[str], architecture: str) -> None:
    backbone = measured_backbone(architecture)
    groups = _groups(names, backbone)
    batch = tiny.tiny_batch(architecture)
    pack, tensors = _moved(backbone, groups)
    with torch.no_grad(), pack.running():
        found = pack(batch, SILENT)[0]
    maps = {(LAYER, SITE): _together(backbone, groups, tensors)}
    expected = logits_of(backbone, maps, batch, backbone.head(3), tensors)
    near = 1e-6 if architecture == "llama" else 1e-9  # its norms are computed in float32
    assert torch.allclose(found, expected, rtol=0.0, atol=near)
    plain = logits_of(backbone, {}, batch, backbone.head(3), tensors)
    assert not torch.allclose(expected, plain, rtol=0.0, atol=1e-4), "they had no effect"
