"""What a measured anatomy tells a space."""

import pytest
from bound_problems import anatomy
from importance_maps import with_importance

from autopeft.errors import BackboneError

RANKING = (3, 1, 5, 4, 0, 2)


def test_a_shape_ranks_what_is_measured() -> None:
    body = with_importance(anatomy(24), scores=("fisher", "activation"), ranking=RANKING)
    shape = body.shape(frozenset({"lora"}))
    assert set(shape.rankings) == {"fisher", "activation"}
    ranking = shape.ranking("fisher")
    assert ranking.layers == RANKING
    assert len(ranking.sites) == len(set(ranking.sites)) == 6 * (6 + 2)
    linear = tuple(pair for pair in ranking.sites if pair[1] in body.roles)
    assert linear == body.measured().site_ranking("fisher", body.roles)


def test_a_sublayer_ranks_as_its_last_map() -> None:
    body = with_importance(anatomy(24), scores=("fisher",))
    sites = body.shape(frozenset()).ranking("fisher").sites
    for layer in range(6):
        for sublayer, last in (("attention", "output"), ("ffn", "down")):
            assert sites.index((layer, sublayer)) == sites.index((layer, last)) + 1


def test_without_a_map_the_shape_has_a_stand_in_and_the_anatomy_none() -> None:
    body = anatomy(24)
    shape = body.shape(frozenset())
    assert shape.rankings == {}
    assert shape.ranking("anything").layers == (5, 4, 3, 2, 1, 0)
    assert {pair[1] for pair in shape.ranking("anything").sites} == shape.roles
    with pytest.raises(BackboneError, match="autopeft importance"):
        body.measured()
