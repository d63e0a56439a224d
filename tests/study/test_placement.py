"""What sits where: a trial's own groups, or what its sparsity rule made of them."""

from datetime import UTC, datetime
from typing import Any

from autopeft.configuration import Configuration, Group
from autopeft.study.placement import placed, placement_map, resolved_details
from autopeft.study.records import Origin, TrialRecord, TrialState

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


def trial(**details: Any) -> TrialRecord:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return TrialRecord(
        study="s",
        number=0,
        state=TrialState.COMPLETED,
        origin=Origin.SEARCHER,
        baseline=None,
        configuration=RULED,
        hash=RULED.hash,
        objectives={},
        trainable_params=1,
        head_params=0,
        rung=1.0,
        optimizer_steps=1,
        seed=0,
        replicate=0,
        pack=0,
        attempts=1,
        cause=None,
        message=None,
        profile={},
        details=details,
        created_at=now,
        started_at=None,
        finished_at=None,
    )


def test_a_trial_keeps_what_its_rule_made_of_it() -> None:
    found = placed(trial(**resolved_details(RULED, BUILT)))
    assert found.groups == BUILT.groups
    assert placement_map(found, 2).sizes == {("lora query", 1): 4, ("sparse query", 0): 0.01}


def test_without_that_the_configuration_is_drawn() -> None:
    assert placed(trial()) == RULED
    assert resolved_details(RULED, RULED) == {}
