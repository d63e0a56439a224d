"""The problem of a study: exact ranges, caps checked before anything trains, baselines."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bound_problems
import numpy as np
import pytest
import torch
from importance_maps import importance_map
from tiny_backbones import tiny_backbone

from autopeft import counting
from autopeft.api import checks
from autopeft.api import problem as problems
from autopeft.api.probing import SpaceProbes
from autopeft.backbone.anatomy import Anatomy
from autopeft.errors import BackboneError, InputError
from autopeft.methods import registry
from autopeft.searchers.base import Problem
from autopeft.searchers.baselines import LEARNING_RATES, baselines
from autopeft.searchers.front import utility
from autopeft.searchers.registry import make_searcher
from autopeft.space.method_names import NOT_PASSED
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration
from autopeft.study.definition import StudyDefinition, parse_definition

FACTS = problems.Facts(0.25, 1.0, 99, 10_000, 500)
SPACES = ("quick", "lora", "mixed", "autopeft")


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """Three BERT-like layers."""
    return tiny_backbone("bert", torch.float32).anatomy


def _definition(space: str | dict[str, Any], **blocks: Any) -> StudyDefinition:
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": space} | blocks
    return parse_definition(plain, where="test", base=None)


def _problem(anatomy: Anatomy, space: str | dict[str, Any], **blocks: Any) -> Problem:
    definition = _definition(space, **blocks)
    bound = problems.bind_space(definition, anatomy)
    return problems.make_problem(definition, anatomy, bound, FACTS)


@pytest.mark.parametrize("space", ["methods", "everything"])
def test_spaces_of_all_methods_have_all_of_them_and_something_of_each(space: str) -> None:
    body = bound_problems.anatomy()
    definition = _definition(space)
    bound = problems.bind_space(definition, body)
    assert {method.name for method in bound.layout.methods} == set(registry.names())
    tried = problems.tried_faults(definition, body, bound)
    assert problems.build_faults(tried) == []
    if space == "methods":
        assert set(tried) == {*registry.names(), problems.TOGETHER}
        assert not any(tried[problems.TOGETHER])


@pytest.mark.parametrize("space", SPACES)
def test_samples_lie_in_the_exact_range_and_the_frame_is_its_ends(
    space: str, anatomy: Anatomy
) -> None:
    problem = _problem(anatomy, space)
    quality, cost = problem.frame
    assert (quality.worst, quality.best) == (0.25, 1.0)
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        configuration = problem.build(problem.space.sample(rng))
        params = counting.trainable_params(configuration, anatomy)
        assert cost.best <= params <= cost.worst
        assert sum(problem.site_params(configuration).values()) == params
        assert problem.known(configuration)["trainable_params"] == params
        found.add(params)
    assert len(found) > 30
    largest = problem.build(problem.space.largest())
    assert counting.trainable_params(largest, anatomy) == cost.worst


def test_adapter_bytes_and_flops_follow_the_placement(anatomy: Anatomy) -> None:
    problem = _problem(anatomy, "lora")
    low, high = (
        baselines(["lora-r1"], anatomy, training=_REST),
        baselines(["lora-r8"], anatomy, training=_REST),
    )
    one, eight = next(iter(low.values())), next(iter(high.values()))
    assert problem.known(eight)["adapter_bytes"] == 4 * (
        problem.known(eight)["trainable_params"] + 99
    )
    assert problem.known(eight)["trainable_params"] == 8 * problem.known(one)["trainable_params"]
    extra = problem.flops(eight) - problem.flops(one)
    assert extra == pytest.approx(6 * 10_000 * 7 * problem.known(one)["trainable_params"])


_REST = {"weight_decay": 0.0, "warmup_ratio": 0.06}


def test_a_cap_bounds_the_frame_and_what_is_feasible(anatomy: Anatomy) -> None:
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": 500}]
    problem = _problem(anatomy, "lora", objectives=capped)
    assert problem.frame[1].worst == 500
    rng = np.random.default_rng(1)
    verdicts = set()
    for _ in range(200):
        configuration = problem.build(problem.space.sample(rng))
        small = counting.trainable_params(configuration, anatomy) <= 500
        assert problem.feasible(configuration) == small
        verdicts.add(small)
    assert verdicts == {True, False}


def test_a_cap_that_nothing_meets_names_the_smallest_configuration(anatomy: Anatomy) -> None:
    capped = [{"metric": "accuracy"}, {"metric": "trainable_params", "cap": 10}]
    with pytest.raises(InputError, match="at least 64, the space's smallest"):
        _problem(anatomy, "lora", objectives=capped)


def test_deploy_peft_keeps_to_what_peft_carries(anatomy: Anatomy) -> None:
    problem = _problem(anatomy, "quick", deploy=["peft"])
    rng = np.random.default_rng(2)
    for _ in range(50):
        configuration = problem.build(problem.space.sample(rng))
        assert problem.feasible(configuration) == (configuration.methods == ("lora",))


@pytest.mark.parametrize(
    ("name", "block", "key", "told"),
    [
        ("peft:HIRA", {"rank_pattern": 3}, "rank_pattern", "HiRA ignores its rank_pattern"),
        ("peft:LORA", {"adapter_names": "a"}, "adapter_names", "drops it in silence"),
        ("peft:LORA", {"target_modules": "all-linear"}, "target_modules", "full module names"),
        ("peft:LORA", {"lora_alhpa": 3}, "lora_alhpa", "write lora_alpha"),
        ("peft:LORA", {"use_dora": 3}, "use_dora", "true or false"),
        ("peft:LORA", {"init_lora_weights": "eva"}, "init_lora_weights", "of the task's texts"),
        ("peft:LORA", {"init_lora_weights": "corda"}, "init_lora_weights", "covariances"),
        ("peft:LORA", {"init_lora_weights": "loftq"}, "init_lora_weights", "quantises"),
        ("peft:LORA", {"init_lora_weights": "lora_ga"}, "init_lora_weights", "gradients"),
        ("peft:LORA", {"init_lora_weights": "pisa"}, "init_lora_weights", "pissa_niter_N"),
        ("peft:LORA", {"init_lora_weights": 1}, "init_lora_weights", "true, false, gaussian"),
        ("peft:ADALORA", {"init_lora_weights": "pissa"}, "init_lora_weights", "starts alike"),
        ("peft:ADALORA", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights", "alike"),
        ("peft:LOKR", {"init_weights": "gaussian"}, "init_weights", "lycoris"),
        ("peft:TINYLORA", {"init_weights": False}, "init_weights", "from memory"),
    ],
)
def test_what_a_type_of_peft_does_not_take_is_told(
    name: str, block: dict[str, Any], key: str, told: str, anatomy: Anatomy
) -> None:
    size = registry[name].schema.size
    space = {"methods": {name: {size: {"choice": [2, 4]}, **block}}}
    faults = checks.space_faults(space, where="s")
    assert [fault.key for fault in faults] == [f"space.methods.{name}.{key}"]
    assert told in str(faults[0])
    entry = {"layers": [0], size: 2, **block}
    faults = check_configuration(
        {name: [entry]}, shape=anatomy.shape(registry.carried_by(anatomy)), where="c",
        **problems.registered(),
    )  # fmt: skip
    assert [fault.key for fault in faults] == [f"configuration.{name}.0.{key}"]
    if key.startswith("init"):
        assert told in str(faults[0])


def test_what_factors_start_from_may_vary(anatomy: Anatomy) -> None:
    """And what `peft` does where nothing is said is the configuration that it always was."""
    starts = [True, "pissa", "olora", "pissa_niter_4", "mica", False]
    block = {"r": {"choice": [2, 4]}, "init_lora_weights": {"choice": starts}}
    problem = _problem(anatomy, {"methods": {"peft:LORA": block}, "layers": {"mode": "last"}})
    found: dict[Any, set[str]] = {}
    rng = np.random.default_rng(0)
    for _ in range(200):
        point = problem.space.sample(rng)
        assert problem.space.decode(problem.space.encode(point)) == point
        configuration = problem.build(point)
        assert counting.faults(configuration, anatomy) == []
        assert problem.space.nearest(configuration.to_dict()) == point
        (group,) = configuration.groups
        found.setdefault(group.get("init_lora_weights", True), set()).add(configuration.hash)
    assert set(found) == set(starts)
    hashes = [each for own in found.values() for each in own]
    assert len(hashes) == len(set(hashes))
    plain = _problem(
        anatomy, {"methods": {"peft:LORA": {"r": {"choice": [2, 4]}}}, "layers": {"mode": "last"}}
    )
    sampled = {plain.build(plain.space.sample(rng)).hash for _ in range(100)}
    assert found[True] <= sampled


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("LORA", {"r": 2}, "e25474ed111bf513"),
        ("LORA", {"r": 2, "init_lora_weights": False}, "346e0a496de164ea"),
        ("C3A", {"block_size": 4}, "4241917c68838d1f"),
        ("MISS", {"r": 4, "mini_r": 2}, "80df4a19f6aaaa83"),
    ],
)
def test_configurations_from_before_names_have_their_hashes(
    name: str, settings: dict[str, Any], expected: str
) -> None:
    entry = {"layers": [0], "sites": ["query"], **settings}
    told = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    configuration = complete_configuration(
        {f"peft:{name}": [entry]}, problems.registered()["schemas"], told,
        rules=problems.registered()["rules"],
    )  # fmt: skip
    assert configuration.hash == expected


def test_every_other_type_of_peft_is_refused_with_its_reason(anatomy: Anatomy) -> None:
    """And nobody has to read the names of all those that there are."""
    from peft import PeftType

    types = {f"peft:{each.value}" for each in PeftType} - set(registry.offered())
    assert types == {f"peft:{kind}" for kind in NOT_PASSED}
    wrong: dict[str, Any] = {name: {} for name in (*types, "peft:VERRA", "hyra")}
    faults = checks.space_faults({"methods": wrong}, where="s")
    hints = {fault.given: fault.hint for fault in faults}
    assert hints == {f"peft:{kind}": why for kind, why in NOT_PASSED.items()} | {
        "peft:VERRA": "write peft:VERA",
        "hyra": "write hira",
    }
    for fault in faults:
        assert fault.allowed.endswith("waveft, peft:<TYPE> (see `autopeft methods`)")
        assert fault.allowed.count("peft:") == 1
    for why in NOT_PASSED.values():
        assert all(ours in registry.names() for ours in re.findall("`(.*?)`", why))
    shape = anatomy.shape(registry.carried_by(anatomy))
    entry = {"peft:CPT": [{"layers": [0]}]}
    (fault,) = check_configuration(entry, shape=shape, where="c", **problems.registered())
    assert fault.hint == NOT_PASSED["CPT"]
    assert fault.allowed.count("peft:") == 1
    with pytest.raises(BackboneError, match="TYPE") as caught:
        registry["peft:CPT"]
    assert "peft:LORA" not in str(caught.value)


def test_factors_that_peft_drops_in_silence_are_no_parameter() -> None:
    """It does so where its CUDA extension is not built: the count would be another machine's."""
    entry = {"boft_block_size": 8, "boft_n_butterfly_factor": 2}
    (fault,) = checks.space_faults({"methods": {"peft:BOFT": entry}}, where="s")
    assert fault.key.endswith("boft_n_butterfly_factor")
    assert "`boft`" in fault.hint


def test_a_type_of_peft_that_nothing_fits_is_refused_before_training(anatomy: Anatomy) -> None:
    space = {"methods": {"peft:C3A": {"block_size": {"choice": [5, 7]}, "sites": ["up"]}}}
    definition = _definition(space)
    bound = problems.bind_space(definition, anatomy)
    (fault, *_) = problems.build_faults(problems.tried_faults(definition, anatomy, bound))
    assert fault.key == "space.methods.peft:C3A.block_size"
    assert fault.allowed == "1, 2, 4, 8, 16"
    problem = _problem(anatomy, {"methods": {"peft:UNILORA": {
        "theta_d_length": {"choice": [8, 32]}, "sites": {"subset": ["query", "value"]}}},
        "layers": {"mode": "bits"}})  # fmt: skip
    assert problem.frame[1].best == 8
    assert problem.frame[1].worst == 32  # one vector, wherever it goes


def test_deploy_says_what_it_leaves_out_and_why(anatomy: Anatomy) -> None:
    methods = {
        "lora": {"sites": ["query"], "rank": {"choice": [0, 2]}, "alpha": 4},
        "serial_adapter": {"size": {"choice": [0, 2]}},
        "peft:VERA": {"r": {"choice": [0, 4, 8]}, "sites": ["value"]},
        "vera": {"rank": {"choice": [0, 4]}, "sites": ["up"]},
    }
    definition = _definition({"methods": methods}, deploy=["peft"])
    space = problems.bind_space(definition, anatomy)
    told = problems.not_deployed(definition, anatomy, space)
    assert told["serial_adapter"].startswith("serial_adapter not carried by HF peft")
    assert "one type with one set of parameters" in told["a mixture of lora and peft:VERA"]
    assert not {"lora", "peft:VERA", "vera"} & set(told)
    problem = _problem(anatomy, {"methods": methods}, deploy=["peft"])
    rng = np.random.default_rng(2)
    carried = set()
    for _ in range(60):
        configuration = problem.build(problem.space.sample(rng))
        if problem.feasible(configuration):
            carried.add(configuration.methods)
    assert {("lora",), ("peft:VERA",), ("lora", "vera")} <= carried  # vera folds into lora
    assert all("serial_adapter" not in each and len(set(each) - {"vera"}) <= 1 for each in carried)
    alone = {"methods": {"serial_adapter": {"size": 2}}}
    with pytest.raises(InputError, match="left out: serial_adapter"):
        _problem(anatomy, alone, deploy=["peft"])


def test_enqueued_faults_come_all_at_once(anatomy: Anatomy) -> None:
    plain = {
        "model": {"name_or_path": "m"},
        "data": {"source": "d"},
        "search": {
            "enqueue": [
                {"lora": [{"layers": [9], "rank": 2}]},
                {"loar": [{"layers": [0], "rank": 2}]},
                {"lora": [{"layers": [1], "rank": 2, "sites": ["query"]}]},
            ]
        },
    }
    definition = parse_definition(plain, where="test", base=None)
    with pytest.raises(InputError) as caught:
        problems.enqueued(definition, anatomy)
    assert len(caught.value.faults) == 2


def test_baselines_are_lora_at_every_rate_and_unknown_ones_are_named(anatomy: Anatomy) -> None:
    found = baselines(["lora-r8"], anatomy, training=_REST)
    assert [c.training_value("learning_rate") for c in found.values()] == list(LEARNING_RATES)
    (group,) = next(iter(found.values())).groups
    assert (group.layers, group.sites) == ((0, 1, 2), ("query", "value"))
    with pytest.raises(InputError) as caught:
        baselines(["lora-r8", "lroa-r8", "full"], anatomy, training=_REST)
    assert [fault.given for fault in caught.value.faults] == ["lroa-r8", "full"]


# -- measured costs -------------------------------------------------------------------------------

MEASURED = [{"metric": "accuracy", "floor": 0.5}, {"metric": "train_seconds"}]
MEMORY = {"metric": "peak_memory_bytes", "cap": "1MiB"}


def _measured(anatomy: Anatomy, ranges: Any, **blocks: Any) -> Problem:
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": "lora"} | blocks
    definition = parse_definition(plain, where="test", base=None)
    bound = problems.bind_space(definition, anatomy)
    return problems.make_problem(definition, anatomy, bound, FACTS, measured=ranges)


def test_frames_of_measured_costs_are_what_the_ends_of_the_space_took(anatomy: Anatomy) -> None:
    ranges = {"train_seconds": (0.2, 3.0), "peak_memory_bytes": (2e6, 5e6)}
    problem = _measured(anatomy, ranges, objectives=MEASURED, constraints=[MEMORY])
    quality, seconds = problem.frame
    assert (seconds.name, seconds.goal, seconds.scale) == ("train_seconds", "min", "log10")
    assert seconds.best == pytest.approx(0.2 / problems.SLACK)
    assert seconds.worst == pytest.approx(3.0 * problems.SLACK)
    floor, cap = problem.limits
    assert (floor.metric, floor.bound, floor.frame) == ("accuracy", 0.5, quality)
    assert (cap.metric, cap.bound) == ("peak_memory_bytes", 2**20)
    assert cap.frame.best < cap.frame.worst == 2**20, "a cap below all leaves no frame"
    sampled = problem.build(problem.space.sample(np.random.default_rng(0)))
    assert problem.feasible(sampled), "nobody can know a measured cost beforehand"


def test_a_cap_ends_the_frame_and_two_caps_are_one(anatomy: Anatomy) -> None:
    objectives = [MEASURED[0], {"metric": "train_seconds", "cap": 2}]
    constraints = [{"metric": "train_seconds", "cap": "1.5"}]
    ranges = {"train_seconds": (0.2, 3.0)}
    problem = _measured(anatomy, ranges, objectives=objectives, constraints=constraints)
    assert problem.frame[1].worst == 1.5
    assert [limit.bound for limit in problem.limits] == [0.5, 1.5]


def test_configurations_that_all_take_alike_leave_room_for_noise(anatomy: Anatomy) -> None:
    problem = _measured(anatomy, {"train_seconds": (1.0, 1.0)}, objectives=MEASURED)
    assert utility(problem.frame[1], 1.0) == pytest.approx(0.5)


def test_without_probes_only_the_measured_frames_are_missing(anatomy: Anatomy) -> None:
    objectives = [*MEASURED, {"metric": "trainable_params"}]
    problem = _measured(anatomy, {}, objectives=objectives, constraints=[MEMORY])
    assert [frame.name for frame in problem.frame] == ["accuracy", "trainable_params"]
    assert [limit.metric for limit in problem.limits] == ["accuracy"]


def test_the_probed_ends_span_parameters_and_work(anatomy: Anatomy) -> None:
    problem = _problem(anatomy, "lora")
    ends = problems.probed_ends(problem)
    params = {n: problem.known(c)["trainable_params"] for n, c in ends.items()}
    work = {name: problem.flops(each) for name, each in ends.items()}
    rng = np.random.default_rng(0)
    sampled = [problem.build(problem.space.sample(rng)) for _ in range(200)]
    assert params["smallest"] <= min(problem.known(c)["trainable_params"] for c in sampled)
    assert work["lightest"] <= min(map(problem.flops, sampled))
    assert work["largest"] >= max(map(problem.flops, sampled))


def test_a_device_that_cannot_tell_a_peak_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        "model": {"name_or_path": "m"},
        "data": {"source": "d"},
        "objectives": MEASURED,
        "constraints": [MEMORY],
        "execution": {"devices": "mps"},
    }
    definition = parse_definition(plain, where="test", base=None)
    (fault,) = checks._probe_faults(definition, "study.yaml")
    assert (fault.where, fault.key) == ("study.yaml", "constraints.0.metric")
    assert fault.given == "peak_memory_bytes"
    assert "cpu or cuda" in fault.allowed
    plain["execution"] = {"devices": "cpu"}
    assert not checks._probe_faults(parse_definition(plain, where="t", base=None), "study.yaml")


def test_what_probes_found_survives_the_store() -> None:
    plain = {
        "model": {"name_or_path": "m"},
        "data": {"source": "d"},
        "objectives": [MEASURED[0], {"metric": "train_seconds", "cap": 0.1}],
    }
    definition = parse_definition(plain, where="test", base=None)
    ends = {"smallest": {"train_seconds": 0.2}, "largest": {"train_seconds": 3.0}}
    found = SpaceProbes.of(ends, definition, "a machine")
    assert found.ranges == {"train_seconds": (0.2, 3.0)}
    assert any("below all that was probed" in line for line in found.lines(definition))
    record = SimpleNamespace(facts={"probes": json.loads(json.dumps(found.to_dict()))})
    assert SpaceProbes.stored(record) == found  # type: ignore[arg-type]
    assert SpaceProbes.stored(SimpleNamespace(facts={})) is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match="train_seconds"):
        SpaceProbes.of({}, definition, "a machine")


SPARSE = {"density": {"choice": [0, 0.01, 0.5]}, "sites": ["query", "up"]}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"granularity": "head"}, "sparse.granularity"),
        ({"score": "diagonal", "granularity": "input"}, "sparse.score"),
        ({"score": "gradient", "smallest": True}, ""),  # a map tells whether it is whole
        ({"score": "random", "granularity": "input", "noise": 1}, "sparse.noise"),
        ({"score": "random", "granularity": "block", "block": 99}, "sparse.block"),
        ({"score": "gradient_sum", "granularity": "head", "sites": ["query"]}, "sparse.score"),
        ({"score": "random", "granularity": {"choice": ["head", "input"]}}, ""),
        ({"score": "gradient"}, ""),
    ],
)
def test_a_method_that_nothing_can_be_built_of_is_a_fault_before_anything_is_measured(
    given: dict[str, Any], key: str, anatomy: Anatomy
) -> None:
    block = {"methods": {"lora": {"rank": {"choice": [0, 2]}}, "sparse": SPARSE | given}}
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": block}
    definition = parse_definition(plain, where="test", base=None)
    bound = problems.bind_space(definition, anatomy)
    found = problems.build_faults(problems.tried_faults(definition, anatomy, bound))
    assert {fault.key for fault in found} == ({f"space.methods.{key}"} if key else set())


def test_methods_that_exclude_each_other_are_not_proposed_together(anatomy: Anatomy) -> None:
    """Of two prompts at a layer a pack would say no, in the middle of a search."""
    either: dict[str, Any] = {"present": {"choice": [True, False]}}
    methods = {"prompt": {"length": {"choice": [1, 2, 4]}}, "dept": {"length": 2}}
    space = {"methods": {name: own | either for name, own in methods.items()}}
    definition = _definition(space)
    bound = problems.bind_space(definition, anatomy)
    tried = problems.tried_faults(definition, anatomy, bound)
    assert problems.build_faults(tried) == []
    (note,) = problems.barred_parts(tried)
    assert "of methods beside each other is never proposed" in note
    proposals = make_searcher("random", _problem(anatomy, space)).ask(4)
    assert {len(proposal.configuration.groups) for proposal in proposals} == {1}
    always = _definition({"methods": methods})
    tried = problems.tried_faults(always, anatomy, problems.bind_space(always, anatomy))
    (fault,) = problems.build_faults(tried)
    assert fault.key == "space.methods.prompt.layers"
    entries = {name: [{"layers": [0, 2], "length": 2}] for name in methods}
    with pytest.raises(InputError, match=r"search\.enqueue\.0\.prompt\.layers"):
        problems.enqueued(_definition(space, search={"enqueue": [entries]}), anatomy)


def test_a_range_leaves_out_what_a_rule_refuses(anatomy: Anatomy) -> None:
    """AdaLoRA refuses DoRA, of which the largest configurations are."""
    dora = {"rank": {"choice": [1, 4]}, "alpha_over_rank": 2, "dora": {"choice": [False, True]}}
    rules = {"rule": {"choice": ["none", "adalora"]}}
    definition = _definition({"methods": {"lora": dora}, "sparsity": rules})
    bound = problems.bind_space(definition, anatomy)
    refused = [
        bool(counting.faults(problems.build(definition, bound, point), anatomy))
        for point in bound.largest_by_rule()
    ]
    assert refused == [False, True]
    found = problems.param_range(bound, definition, anatomy)
    largest = problems.build(definition, bound, bound.largest())
    assert found["max"] == counting.trainable_params(largest, anatomy)
    worst = problems.make_problem(definition, anatomy, bound, FACTS).frame[1].worst
    assert worst == found["max"]
    always = _definition(
        {"methods": {"lora": dora | {"dora": True}}, "sparsity": {"rule": "adalora"}}
    )
    with pytest.raises(InputError, match=r"lora\.dora; got true"):
        problems.param_range(problems.bind_space(always, anatomy), always, anatomy)


def test_what_a_map_cannot_tell_is_never_proposed(anatomy: Anatomy) -> None:
    space = {"methods": {"sparse": SPARSE | {"score": "fisher"}}}
    measured = replace(anatomy, importance=importance_map(anatomy, kept=40))
    problem = _problem(measured, space)
    proposals = make_searcher("random", problem).ask(8)
    densities = {group["density"] for p in proposals for group in p.configuration.groups}
    assert densities == {0.01}
    too_much = problem.build(problem.space.largest())
    assert not problem.feasible(too_much)
    (fault, *_) = counting.faults(too_much, measured)
    assert "which the map keeps" in fault.allowed
    assert counting.faults(too_much, anatomy) == [], "only a map can tell"
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "space": space}
    definition = parse_definition(plain, where="test", base=None)
    tried = problems.tried_faults(definition, measured, problem.space)
    (note,) = problems.barred_parts(tried)
    assert "of sparse is never proposed" in note
    assert "`search.importance_keep` says" in note
    assert problems.build_faults(tried) == []
    unknown = problems.tried_faults(definition, anatomy, problem.space)
    assert problems.barred_parts(unknown) == []


def test_what_a_rule_refuses_is_told(anatomy: Anatomy) -> None:
    """Of LoRA's ranks the larger are more single weights than the map keeps."""
    lora = {"rank": {"choice": [1, 8]}, "sites": ["query", "up"]}
    space = {"methods": {"lora": lora}, "sparsity": {"rule": {"choice": ["none", "sparse"]}}}
    definition = _definition(space)
    scarce = replace(anatomy, importance=importance_map(anatomy, kept=200))
    tried = problems.tried_faults(definition, scarce, problems.bind_space(definition, scarce))
    (note,) = problems.barred_parts(tried)
    assert "of the rule sparse is never proposed" in note
    assert "`search.importance_keep` says" in note
    assert problems.build_faults(tried) == []
    problem = _problem(scarce, space)
    ends = problems.probed_ends(problem)
    assert not any(counting.faults(each, scarce) for each in ends.values())
    assert ends["largest"] == problems.largest_configuration(problem)
    for other in (anatomy, replace(anatomy, importance=importance_map(anatomy))):
        tried = problems.tried_faults(definition, other, problems.bind_space(definition, other))
        assert problems.barred_parts(tried) == []


def test_enqueued_configurations_that_cannot_be_built_are_told(anatomy: Anatomy) -> None:
    entry = {"sparse": [{"layers": [0], "sites": ["up"], "density": 0.1, "granularity": "head"}]}
    with pytest.raises(InputError, match=r"search\.enqueue\.0\.sparse\.granularity"):
        problems.enqueued(_definition_with([entry]), anatomy)


def _definition_with(enqueue: list[dict[str, Any]]) -> Any:
    plain = {
        "model": {"name_or_path": "m"}, "data": {"source": "d"}, "search": {"enqueue": enqueue},
    }  # fmt: skip
    return parse_definition(plain, where="test", base=None)


# -- options of the FFN ---------------------------------------------------------------------------


def _without_down(anatomy: Anatomy) -> Anatomy:
    layers = [
        replace(layer, sites={role: s for role, s in layer.sites.items() if role != "down"})
        for layer in anatomy.layers
    ]
    return replace(anatomy, layers=tuple(layers))


def test_options_of_ffns_that_cannot_be_reached_are_faults_of_study_and_space(
    anatomy: Anatomy,
) -> None:
    plain = {
        "model": {"name_or_path": "x"},
        "data": {"source": "builtin:docstrings"},
        "training": {"ffn_dropping": 0.1},
        "objectives": [{"metric": "accuracy"}, {"metric": "activation_density"}],
        "space": {
            "methods": {"lora": {"rank": 4, "sites": ["query"]}},
            "training": {"density_weight": {"choice": [0, 2.0]}, "ffn_dropping": 0},
        },
    }
    definition = parse_definition(plain, where="the study", base=None)
    space = problems.bind_space(definition, anatomy)
    assert checks._ffn_faults(definition, anatomy, space, "s.yaml") == []
    faults = checks._ffn_faults(definition, _without_down(anatomy), space, "s.yaml")
    assert [(fault.where, fault.key, fault.given) for fault in faults] == [
        ("s.yaml", "training.ffn_dropping", "0.1"),
        ("s.yaml", "space.training.density_weight", "2"),
        ("s.yaml", "objectives", "activation_density"),
    ]


def test_a_space_takes_precedence_over_the_studys_options(anatomy: Anatomy) -> None:
    problem = _problem(
        anatomy,
        {
            "methods": {"lora": {"rank": 4, "sites": ["query"]}},
            "training": {"ffn_masking": {"choice": [0, 0.2]}},
        },
        training={"ffn_masking": 0.1, "ffn_dropping": 0.3},
        objectives=[{"metric": "accuracy"}, {"metric": "activation_density", "cap": 0.8}],
    )
    found = [problem.build({"training.ffn_masking": rate}) for rate in (0, 0.2)]
    masking = [dict(each.training).get("ffn_masking") for each in found]
    assert masking == [None, 0.2]
    assert {dict(each.training)["ffn_dropping"] for each in found} == {0.3}
    density = problem.frame[1]
    assert (density.name, density.scale, density.worst, density.best) == (
        "activation_density",
        "linear",
        0.8,
        0.0,
    )
    assert [(limit.metric, limit.bound) for limit in problem.limits] == [
        ("activation_density", 0.8)
    ]
