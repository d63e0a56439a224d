"""Compacter: one small set of matrices for all adapters, and widths that do not divide."""

import tiny_backbones as tiny
import torch
from method_cases import configuration

from autopeft import counting
from autopeft.methods.compacter import kronecker_sum
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds


def test_one_set_of_matrices_serves_all_adapters_of_a_group() -> None:
    backbone = tiny.tiny_backbone("bert")
    case = configuration("compacter", backbone.anatomy, 1, layers=(1, 2), bottleneck=8, division=2)
    pack = Pack(backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(0))
    held = pack.lane_views(pack.parameters_by_name(), 0)
    assert [n for n in held if n.endswith(".rule")] == ["compacter.1.attention.rule"]
    assert held["compacter.1.attention.rule"].shape == (2, 2, 2)
    each = 2 * (32 + 8) + 32 + 8
    assert counting.trainable_params(case, backbone.anatomy) == 4 * each + 2**3


def test_a_sum_of_kronecker_products_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 3, 3, 2, generator=generator), torch.randn(2, 3, 4, 5)
    found = kronecker_sum(left, right)
    for lane in range(2):
        expected = sum(torch.kron(a, b) for a, b in zip(left[lane], right[lane], strict=True))
        assert torch.allclose(found[lane], expected, atol=1e-5)


def test_a_division_that_does_not_divide_is_told_with_those_that_do() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    (fault,) = counting.faults(configuration("compacter", anatomy, division=3), anatomy)
    assert fault.key == "compacter.division"
    assert fault.allowed == "1, 2, 4, 8"
    assert not counting.faults(configuration("compacter", anatomy, division=8), anatomy)
