"""AdaMix: which expert runs, for whom."""

import tiny_backbones as tiny
import torch
from method_cases import configuration
from reference_files import reference

from autopeft.methods.adamix import AdamixOperator
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

CPU = torch.device("cpu")


def _operator(experts: int, *, share_up: bool) -> tuple[AdamixOperator, dict[str, object]]:
    backbone = tiny.tiny_backbone("bert")
    own = {"sites": ["ffn"], "experts": experts, "share_up": share_up}
    case = configuration("adamix", backbone.anatomy, 3, layers=(0,), **own)
    pack = Pack(backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(0), dtype=torch.float64)
    (operator,) = pack.operators
    assert isinstance(operator, AdamixOperator)
    for parameter in operator.parameters():
        torch.nn.init.normal_(parameter)
    return operator, dict(case.groups[0].settings)


def test_a_step_runs_the_expert_that_is_drawn_and_evaluation_their_mean() -> None:
    y = torch.randn(1, 2, 5, 32, dtype=torch.float64)
    for experts, share_up in ((4, False), (3, True)):
        operator, settings = _operator(experts, share_up=share_up)
        own = {name: tensor[0] for name, tensor in operator.named_parameters()}
        seen = set()
        for step in range(40):
            draws = StepUniform(Seeds(0), step, 0, 2, CPU)
            down, up = (
                int(draws(f"adamix.0.ffn/{name}", (1,), per_row=False) * count)
                for name, count in (("down", experts), ("up", 1 if share_up else experts))
            )
            seen.add((down, up))
            found = y + operator.delta(y, y, Call(True, draws))
            expected = reference("adamix").expert(settings, own, y, down, up)
            assert torch.allclose(found, expected, rtol=0.0, atol=1e-9)
        assert len(seen) > experts - 1, "not all experts have their turn"
        mean = y + operator.delta(y, y, SILENT)
        assert torch.allclose(mean, reference("adamix").output(settings, own, y, y), atol=1e-9)


def test_experts_start_as_copies_and_part_once_they_are_trained() -> None:
    backbone = tiny.tiny_backbone("bert")
    case = configuration("adamix", backbone.anatomy, 3, layers=(0,), share_up=False)
    tensors = {}
    pack = Pack(backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(0))
    for name, view in pack.lane_views(pack.parameters_by_name(), 0).items():
        if name.startswith("adamix"):
            assert torch.equal(view, view[:1].expand_as(view))
            tensors[name] = view
    assert {tensor.shape[0] for tensor in tensors.values()} == {4}
