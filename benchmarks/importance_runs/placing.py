"""Groups of equal size at different places: a budget of parameters, spent."""

from collections.abc import Sequence

import numpy as np

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import Key
from autopeft.configuration import Configuration, Group
from autopeft.space.schema import Scalar

ROLES = ("query", "value", "up", "down")
"""Where arms sit unless their own paper says otherwise: the sites of the space `importance`."""

ALPHA_OVER_RANK = 2.0


def keys_of(anatomy: Anatomy, roles: Sequence[str] = ROLES) -> list[Key]:
    """The sites of some roles in all layers, bottom up."""
    return [(layer.index, role) for layer in anatomy.layers for role in roles]


def price(key: Key, anatomy: Anatomy) -> int:
    """Parameters of a rank of LoRA at a site."""
    site = anatomy.site(*key)
    return site.in_features + site.out_features


def budget(anatomy: Anatomy, rank: int) -> int:
    """Parameters of LoRA of a rank at `ROLES` of every layer."""
    return rank * sum(price(key, anatomy) for key in keys_of(anatomy))


def weights(anatomy: Anatomy, roles: Sequence[str] = ROLES) -> int:
    """Frozen weights of some roles in all layers."""
    sites = [anatomy.site(*key) for key in keys_of(anatomy, roles)]
    return sum(site.in_features * site.out_features for site in sites)


def lora(rank: int, layers: Sequence[int], sites: Sequence[str] = ROLES) -> Group:
    """LoRA without dropout, as sparse weights have none."""
    return Group.of("lora", layers, sites, rank=rank, alpha=ALPHA_OVER_RANK * rank, dropout=0.0)


def lora_at(keys: Sequence[Key], anatomy: Anatomy, params: int) -> list[Group]:
    """LoRA at some sites for so many parameters in all, or a little less.

    Ranks differ by 1 at most; the first of the sites that can be paid have the higher ones.
    """
    prices = [price(key, anatomy) for key in keys]
    low, left = divmod(params, sum(prices))
    groups = []
    for (layer, role), each in zip(keys, prices, strict=True):
        more = each <= left
        left -= each * more
        if low + more:
            groups.append(lora(low + more, [layer], [role]))
    return groups


def sparse(
    anatomy: Anatomy, roles: Sequence[str], density: float, *, score: str, **settings: Scalar
) -> Group:
    """The method `sparse` in all layers."""
    given: dict[str, Scalar] = {"granularity": "weight", "smallest": False, **settings}
    layers = range(len(anatomy.layers))
    return Group.of("sparse", layers, roles, density=density, score=score, **given)


def shuffled(configuration: Configuration, anatomy: Anatomy, replicate: int) -> Configuration:
    """The same groups in other layers, and single weights at random: as large, and blind.

    Layers change places within a role, so that every matrix finds one of its size.

    Args:
        configuration: Of groups at linear sites.
        anatomy: The backbone.
        replicate: Decides on the places.
    """
    rng = np.random.default_rng([1, replicate])
    roles = sorted({site for group in configuration.groups for site in group.sites})
    others = {role: rng.permutation(len(anatomy.layers)) for role in roles}
    groups = []
    for group in configuration.groups:
        settings = dict(group.settings)
        if group.method == "sparse":
            settings["score"] = "random"
        groups += [
            Group.of(group.method, [int(others[role][layer])], [role], **settings)
            for layer in group.layers
            for role in group.sites
        ]
    return Configuration.of(groups, training=dict(configuration.training))
