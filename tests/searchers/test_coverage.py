"""What configurations of any method cover of an importance map."""

import pytest
import tiny_backbones as tiny
from importance_maps import with_importance
from method_cases import configuration

from autopeft import counting
from autopeft.methods import registry
from autopeft.searchers.coverage import coverage


@pytest.mark.parametrize("name", registry.names())
def test_what_any_method_trains_counts_for_some_matrix(name: str) -> None:
    """A method whose site stands for no matrix would count for nothing, silently."""
    anatomy = with_importance(tiny.tiny_backbone("bert").anatomy)
    params = counting.site_params(configuration(name, anatomy), anatomy)
    found = coverage(params, anatomy.importance)
    assert found["coverage"] > 0.0, f"{name} has no sites: say what it `stands_for`"
    assert 0.0 < found["covered"] <= 1.0
