"""What sits where: a trial's own groups, or what its sparsity rule made of them."""

from trial_records import completed_trial

from autopeft.configuration import Configuration, Group
from autopeft.study.placement import placed, placement_map, resolved_details

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
RULED = Configuration.of(
    [Group.of("lora", [0, 1], ["query"], rank=4)],
    training=TRAINING,
    sparsity={"rule": "spt", "budget": 0.5},
)
BUILT = Configuration.of(
    [
        Group.of("lora", [1], ["query"], rank=4),
        Group.of("sparse", [0], ["query"], density=0.01),
    ],
    training=TRAINING,
)


def test_a_trial_keeps_what_its_rule_made_of_it() -> None:
    found = placed(completed_trial(0, RULED, details=resolved_details(RULED, BUILT)))
    assert found.groups == BUILT.groups
    assert placement_map(found, 2).sizes == {("lora query", 1): 4, ("sparse query", 0): 0.01}


def test_without_that_the_configuration_is_drawn() -> None:
    assert placed(completed_trial(0, RULED)) == RULED
    assert resolved_details(RULED, RULED) == {}
