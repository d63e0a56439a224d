"""Sources of named baselines, of methods and of spaces are told."""

from bound_problems import bound_problem

from autopeft import api
from autopeft.api.sources import CHANGED, baseline_sources, method_sources, space_source
from autopeft.configuration import Configuration, Group
from autopeft.searchers.presets import KNOWN, RECIPES
from autopeft.space.library import list_spaces
from autopeft.study.definition import default_definition


def test_every_name_that_a_study_may_write_has_its_source() -> None:
    told = api.preset_sources()
    assert {name for name in told if name != "lora-r<rank>"} <= set(KNOWN)
    assert len(told) == len(RECIPES) + 1
    assert all("arXiv" in source for source in told.values())
    assert set(CHANGED) <= set(RECIPES)
    assert told["smt-r<rank>"].endswith("; here: " + CHANGED["smt"])


def test_the_longest_name_that_fits_decides() -> None:
    default = default_definition()
    names = ("s2ft-activation", "llm-adapters-lora-r32", "lora-r8", "sct", {"lora": []})
    search = default.search.model_copy(update={"baselines": names})
    found = baseline_sources(default.model_copy(update={"search": search}))
    assert list(found) == ["s2ft-activation", "llm-adapters-lora-r32", "lora-r8", "sct"]
    assert found["llm-adapters-lora-r32"] == RECIPES["llm-adapters-lora"].source
    assert "2106.09685" in found["lora-r8"]
    assert found["sct"] == f"{RECIPES['sct'].source}; here: {CHANGED['sct']}"


def test_methods_of_a_space_and_of_what_is_tried_beside_it_have_sources() -> None:
    block = {"methods": {"psoft": {"rank": {"choice": [4, 8]}}, "bitfit": {}}}
    space = bound_problem(block).space
    groups = [Group.of(name, [0]) for name in ("psoft", "norm", "peft:BEFT")]
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    beside = [Configuration.of([group], training=training) for group in groups]
    found = method_sources(space, beside)
    assert list(found) == ["bitfit", "norm", "peft:BEFT", "psoft"]
    assert found["psoft"] == "Wu et al. 2025, PSOFT, arXiv 2505.11235; HF peft's PSOFT"
    assert found["peft:BEFT"] == "BEFT, arXiv 2509.15974; HF peft 0.21"


def test_spaces_say_what_they_are_for_and_from() -> None:
    for name in list_spaces():
        assert space_source(name)["description"], name
    assert space_source("autopeft")["source"] == "arXiv 2301.12132"
    block = {"methods": {"lora": {"rank": 4}}}
    assert space_source(block) == {"description": "", "source": ""}
