import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.configuration import TRAINING_KEYS, Configuration, Group
from autopeft.errors import SpaceError

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}

_settings = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 64),
        "alpha": st.floats(0.1, 100.0),
        "reparametrise": st.booleans(),
        "activation": st.sampled_from(["relu", "gelu"]),
    }
)
_training = st.fixed_dictionaries({key: st.floats(0.0, 1.0) for key in TRAINING_KEYS})


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Configurations in which each method has up to three groups on layers of their own."""
    groups = []
    for method in draw(st.lists(st.sampled_from(["lora", "prefix", "adapter"]), unique=True)):
        free = draw(st.permutations(range(6)))
        for share in (free[:2], free[2:4], free[4:]):
            layers = share[: draw(st.integers(0, 2))]
            sites = draw(st.sets(st.sampled_from(["query", "value", "up"])))
            groups.append(Group.of(method, layers, sites, **draw(_settings)))
    return Configuration.of(groups, training=draw(_training))


@settings(max_examples=50, deadline=None)
@given(configurations())
def test_the_plain_form_round_trips(made: Configuration) -> None:
    assert Configuration.from_dict(made.to_dict()) == made
    through_json = Configuration.from_dict(json.loads(json.dumps(made.to_dict())))
    assert through_json == made
    assert through_json.hash == made.hash
    assert pickle.loads(pickle.dumps(made)) == made


@settings(max_examples=50, deadline=None)
@given(configurations(), st.randoms(use_true_random=False))
def test_the_order_of_groups_layers_and_keys_does_not_matter(
    made: Configuration, random: Any
) -> None:
    plain = json.loads(json.dumps(made.to_dict()))
    shuffled: dict[str, Any] = {}
    for key in random.sample(list(plain), len(plain)):
        shuffled[key] = plain[key]
        if isinstance(plain[key], list):
            random.shuffle(shuffled[key])
            for group in shuffled[key]:
                random.shuffle(group["layers"])
    assert Configuration.from_dict(shuffled).hash == made.hash


@settings(max_examples=50, deadline=None)
@given(configurations())
def test_a_group_split_by_layer_is_the_same_configuration(made: Configuration) -> None:
    split = [
        Group.of(group.method, [layer], group.sites, **dict(group.settings))
        for group in made.groups
        for layer in group.layers
    ]
    assert Configuration.of(split, training=dict(made.training)) == made


@settings(max_examples=50, deadline=None)
@given(configurations(), configurations())
def test_hashes_are_equal_where_configurations_are(one: Configuration, two: Configuration) -> None:
    assert (one.hash == two.hash) == (one == two)


def test_groups_without_layers_vanish() -> None:
    lora = Group.of("lora", [1, 0, 1], ["value", "query"], rank=8)
    made = Configuration.of([lora, Group.of("prefix", [], length=4)], training=TRAINING)
    assert made.groups == (lora,)
    assert lora.layers == (0, 1)
    assert lora.sites == ("query", "value")
    assert made.methods == ("lora",)
    assert made.layers == (0, 1)


def test_floats_have_one_spelling() -> None:
    one, two = (
        Configuration.of([], training=TRAINING | {"learning_rate": rate})
        for rate in (0.3, 0.1 + 0.2)
    )
    assert one == two
    assert one.hash == two.hash


def test_values_are_read_by_name() -> None:
    group = Group.of("lora", [0], ["query"], rank=8)
    assert group["rank"] == 8
    assert group.get("alpha") is None
    assert group.get("alpha", 16.0) == 16.0
    made = Configuration.of([group], training=TRAINING)
    assert made.training_value("learning_rate") == 1e-3
    assert made.to_dict() == {
        "lora": [{"layers": [0], "sites": ["query"], "rank": 8}],
        "sparsity": {"rule": "none"},
        "training": TRAINING,
    }


@pytest.mark.parametrize(("sites", "place"), [((), "layer 1"), (("query",), "layer 1, query")])
def test_a_method_sits_once_at_each_place(sites: tuple[str, ...], place: str) -> None:
    groups = [Group.of("lora", [0, 1], sites, rank=8), Group.of("lora", [1], sites, rank=4)]
    with pytest.raises(SpaceError, match=f"two groups at {place}"):
        Configuration.of(groups, training=TRAINING)


@pytest.mark.parametrize("training", [{}, {"learning_rate": 1e-3}, TRAINING | {"epochs": 3.0}])
def test_training_holds_exactly_its_keys(training: dict[str, float]) -> None:
    with pytest.raises(SpaceError, match="learning_rate, weight_decay, warmup_ratio"):
        Configuration.of([], training=training)


def test_the_hash_is_stable_across_processes_and_releases() -> None:
    made = Configuration.of([Group.of("lora", [0], ["query"], rank=8)], training=TRAINING)
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).hash)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(made),
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert result.stdout.decode().strip() == made.hash == "f9fdeeb962fcdbeb"


def test_options_that_are_off_leave_no_trace() -> None:
    groups = [Group.of("lora", [0], ["query"], rank=4)]
    plain = Configuration.of(groups, training=TRAINING)
    off = {"ffn_masking": 0.0, "ffn_dropping": 0, "density_weight": 0.0, "density_epsilon": 1e-3}
    assert Configuration.of(groups, training=TRAINING | off) == plain
    # What the hash of this configuration was before there were options.
    assert plain.hash == "751d88d644433484"
    usual = Configuration.of(groups, training=TRAINING | {"density_weight": 1.0})
    named = {"density_weight": 1.0, "density_epsilon": 1e-7}
    assert Configuration.of(groups, training=TRAINING | named) == usual
    assert usual.to_dict()["training"] == TRAINING | {"density_weight": 1}
    assert usual.training_value("density_epsilon") == 1e-7
    assert Configuration.from_dict(usual.to_dict()) == usual
    assert len({plain.hash, usual.hash}) == 2


def test_an_unknown_training_key_is_refused() -> None:
    with pytest.raises(SpaceError, match="training"):
        Configuration.of([], training=TRAINING | {"ffn_maskng": 0.1})
