"""What layers hand on beside hidden states, and what stands for those that are left out."""

import pytest
import tiny_backbones as tiny
import torch

from autopeft.backbone.handed_on import HandedOn, Others
from autopeft.errors import BackboneError

BIAS, OTHER = torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_only_t5_hands_on_more_than_hidden_states(name: str) -> None:
    expected = {"t5": HandedOn((True, False)), "deberta-v2": HandedOn(from_first=False)}
    assert tiny.tiny_backbone(name).handed_on == expected.get(name, HandedOn())


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([None, None], HandedOn()),
        ([(), ()], HandedOn(())),
        ([(None,), (None,)], HandedOn((False,))),
        ([(None, BIAS), (None, BIAS)], HandedOn((False, True))),
        ([(BIAS,), (OTHER,)], HandedOn((True,), from_first=False)),
        ([(BIAS,), (None,)], HandedOn((True,), from_first=False)),
        ([(BIAS,), (BIAS, BIAS)], HandedOn((True,), from_first=False)),
        ([None, (BIAS,)], HandedOn(from_first=False)),
        ([("text",), ("text",)], HandedOn((False,), from_first=False)),
    ],
)
def test_what_was_seen_of_the_layers_says_what_they_hand_on(
    others: list[Others], expected: HandedOn
) -> None:
    assert HandedOn.of(others) == expected


def test_a_layer_that_is_left_out_returns_what_it_would_have_returned() -> None:
    handed_on = HandedOn((False, True, True, False))
    known = handed_on.by_key((None, BIAS, OTHER, None))
    found = handed_on.in_place(known)
    assert found is not None
    assert [each is own for each, own in zip(found, (None, BIAS, OTHER, None), strict=True)] == [
        True
    ] * 4
    assert HandedOn().in_place({}) is None
    assert HandedOn(()).in_place({}) == ()


@pytest.mark.parametrize(
    "handed_on", [HandedOn((True,)), HandedOn((True,), from_first=False), HandedOn(None, False)]
)
def test_a_layer_for_which_nothing_can_stand_is_not_left_out(handed_on: HandedOn) -> None:
    with pytest.raises(BackboneError, match="hand on more than hidden states"):
        handed_on.in_place({2: BIAS})
