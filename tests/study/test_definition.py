import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InputError
from autopeft.space.document import parse_yaml
from autopeft.study.definition import (
    StudyDefinition,
    default_definition,
    difference,
    load_definition,
    parse_definition,
    render,
)
from autopeft.study.overrides import with_overrides

MINIMAL: dict[str, Any] = {"model": {"name_or_path": "m"}, "data": {"source": "org/d"}}


def parsed(**blocks: Any) -> StudyDefinition:
    return parse_definition(MINIMAL | blocks, where="s.yaml", base=None)


def faults(**blocks: Any) -> dict[str, tuple[str, str, str]]:
    with pytest.raises(InputError) as error:
        parsed(**blocks)
    return {fault.key: (fault.given, fault.allowed, fault.hint) for fault in error.value.faults}


# -- what is accepted ---------------------------------------------------------------------------


def test_defaults_are_those_of_the_design() -> None:
    definition = parsed()
    assert definition.schema_version == "autopeft/v1"
    assert definition.study.seed == 0
    assert definition.model.task == "sequence-classification"
    assert definition.data.splits.train == "train"
    assert definition.data.splits.validation == "validation"
    assert definition.data.splits.test is None
    assert definition.training.learning_rate == 2e-4
    assert definition.training.warmup_ratio == 0.06
    assert definition.search.rungs == (0.2, 1.0)
    assert definition.search.baselines == ("lora-r8",)
    assert definition.budget.trials == 100
    assert definition.budget.wall_clock == 24 * 3600
    assert definition.space == "mixed"
    assert definition.deploy == ()


def test_the_embedded_default() -> None:
    definition = default_definition()
    assert definition.study.name == "demo"
    assert definition.model.name_or_path == "builtin:minilm"
    assert definition.data.source == "builtin:docstrings"
    assert (definition.space, definition.budget.trials, definition.search.initial) == (
        "quick",
        16,
        5,
    )
    assert definition.training.learning_rate == 1e-3
    assert definition.data.max_length == 32


@pytest.mark.parametrize(
    ("task", "canonical", "metric"),
    [
        ("SEQ_CLS", "sequence-classification", "accuracy"),
        ("regression", "regression", "spearman"),
    ],
)
def test_task_decides_the_default_objectives(task: str, canonical: str, metric: str) -> None:
    definition = parsed(model={"name_or_path": "m", "task": task})
    assert definition.model.task == canonical
    assert [(o.metric, o.goal) for o in definition.objectives] == [
        (metric, "max"),
        ("trainable_params", "min"),
    ]


def test_numbers_bytes_and_durations_are_read_from_text() -> None:
    definition = parsed(
        training={"learning_rate": "3e-5"},
        objectives=[
            {"metric": "loss"},
            {"metric": "trainable_params", "cap": "2M"},
            {"metric": "adapter_bytes", "cap": "20MiB"},
        ],
        budget={"wall_clock": "90m", "gpu_hours": "1.5"},
    )
    assert definition.training.learning_rate == 3e-5
    assert [o.cap for o in definition.objectives] == [None, 2_000_000, 20 * 2**20]
    assert definition.objectives[0].goal == "min"
    assert (definition.budget.wall_clock, definition.budget.gpu_hours) == (5400.0, 1.5)


def test_a_null_block_takes_its_defaults() -> None:
    assert parsed(training=None, objectives=None, constraints=None) == parsed()


def test_one_column_is_a_list_of_one() -> None:
    one = parsed(data={"source": "d", "text": "a"})
    assert one.data.text == ("a",)
    assert one == parsed(data={"source": "d", "text": ["a"]})


# -- what is refused ----------------------------------------------------------------------------


def test_all_faults_at_once_in_the_order_of_the_file() -> None:
    found = faults(
        trainig={},
        study={"name": "a b"},
        training={"batch_size": "32", "epochs": True, "learning_rate": "fast"},
        search={"rungs": [0.5, 0.2], "searcher": "gpp"},
        budget={"trials": 0, "wall_clock": 24},
    )
    assert list(found) == [
        "trainig",
        "study.name",
        "training.batch_size",
        "training.epochs",
        "training.learning_rate",
        "search.rungs",
        "search.searcher",
        "budget.trials",
        "budget.wall_clock",
    ]
    assert found["trainig"][2] == "did you mean `training`?"
    assert found["search.searcher"][2] == "did you mean `gp`?"


@pytest.mark.parametrize(
    ("blocks", "key", "nearest"),
    [
        ({"data": {"source": "d", "txt": "a"}}, "data.txt", "text"),
        ({"data": {"source": "d", "splits": {"vallidation": 0.1}}}, "data.splits.vallidation",
         "validation"),
        ({"objectives": [{"metric": "accuracy", "flor": 1}, {"metric": "flops"}]},
         "objectives.0.flor", "floor"),
    ],
)  # fmt: skip
def test_unknown_keys_at_every_level(blocks: dict[str, Any], key: str, nearest: str) -> None:
    assert faults(**blocks)[key][2] == f"did you mean `{nearest}`?"


@pytest.mark.parametrize(
    ("blocks", "key", "ours"),
    [
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size", "training.batch_size"),
        ({"training": {"num_train_epochs": 3}}, "training.num_train_epochs", "training.epochs"),
        ({"lora_r": 8}, "lora_r", "space: {methods: {lora: {rank: ...}}}"),
        ({"model": {"name_or_path": "m", "target_modules": []}}, "model.target_modules",
         "space: {methods: {lora: {sites: ...}}}"),
        ({"micro_batch_size": 2}, "micro_batch_size", "training.micro_batch_size"),
        ({"val_set_size": 0.1}, "val_set_size", "data.splits.validation"),
        ({"study": {"direction": "maximize"}}, "study.direction", "objectives.0.goal"),
        ({"n_trials": 20}, "n_trials", "budget.trials"),
        ({"learning_rate": 1e-4}, "learning_rate", "training.learning_rate"),
    ],
)  # fmt: skip
def test_foreign_spellings_name_our_key(blocks: dict[str, Any], key: str, ours: str) -> None:
    assert faults(**blocks)[key][2] == f"write it as `{ours}`"


def test_a_key_under_a_foreign_name_is_not_also_missing() -> None:
    with pytest.raises(InputError) as error:
        parse_definition({"base_model": "m"}, where="s.yaml", base=None)
    assert [fault.key for fault in error.value.faults] == ["data.source", "base_model"]


@pytest.mark.parametrize(
    ("blocks", "key"),
    [
        ({"model": {"name_or_path": "m", "quantization": "fp4"}}, "model.quantization"),
        ({"execution": {"executor": "slurm"}}, "execution.executor"),
        ({"deploy": ["gguf"]}, "deploy.0"),
        ({"training": {"lr_scheduler": "polynomial"}}, "training.lr_scheduler"),
    ],
)  # fmt: skip
def test_what_this_release_cannot_do_is_refused(blocks: dict[str, Any], key: str) -> None:
    found = faults(**blocks)
    assert list(found) == [key]
    assert "not available in this release" in found[key][2]


def test_sites_by_importance_are_asked_of_the_space() -> None:
    found = faults(model={"name_or_path": "m", "sites": "importance"})
    assert "`layers: {mode: importance, of: sites}`" in found["model.sites"][2]


@pytest.mark.parametrize(
    ("objectives", "key"),
    [
        ([{"metric": "accuracy", "goal": "min"}, {"metric": "flops"}], "objectives.0.goal"),
        ([{"metric": "flops"}, {"metric": "trainable_params"}], "objectives.0.metric"),
        ([{"metric": "accuracy"}, {"metric": "f1"}], "objectives.1.metric"),
        ([{"metric": "accuracy"}, {"metric": "flops"}, {"metric": "flops"}],
         "objectives.2.metric"),
        ([{"metric": "spearman"}, {"metric": "flops"}], "objectives.0.metric"),
        ([{"metric": "exact_match"}, {"metric": "flops"}], "objectives.0.metric"),
        ([{"metric": "accuracy", "cap": 0.9}, {"metric": "flops"}], "objectives.0.cap"),
        ([{"metric": "accuracy"}, {"metric": "flops", "floor": 2}], "objectives.1.floor"),
        ([{"metric": "accuracy"}, {"metric": "flops", "cap": "20GiB"}], "objectives.1.cap"),
        ([{"metric": "accuracy"}, {"metric": "latency_seconds", "floor": 1}],
         "objectives.1.floor"),
        ([{"metric": "train_seconds"}, {"metric": "flops"}], "objectives.0.metric"),
        ([{"metric": "accuracy"}], "objectives"),
        ([], "objectives"),
        ([{"metric": "acuracy"}, {"metric": "flops"}], "objectives.0.metric"),
    ],
)  # fmt: skip
def test_objectives_that_cannot_be(objectives: list[dict[str, Any]], key: str) -> None:
    assert list(faults(objectives=objectives)) == [key]


def test_costs_may_be_measured_and_capped() -> None:
    definition = parsed(
        objectives=[{"metric": "accuracy"}, {"metric": "flops"}, {"metric": "train_seconds"}],
        constraints=[
            {"metric": "peak_memory_bytes", "cap": "20GiB"},
            {"metric": "train_seconds", "cap": 600},
        ],
        budget={"min_gain": "1e-3"},
    )
    assert definition.measured == ("train_seconds", "peak_memory_bytes")
    assert [c.cap for c in definition.constraints] == [20 * 2**30, 600]
    assert definition.budget.min_gain == 0.001
    assert parsed().measured == ()


def test_what_a_runner_takes_of_a_cluster() -> None:
    asked = {"address": "10.0.0.1:6379", "workers": 3, "gpus": 0.5, "cpus": 2, "memory": "16GiB"}
    found = parsed(execution={"executor": "ray", "ray": asked}).execution
    assert found.ray.model_dump() == asked | {"memory": 16 * 2**30}
    untold = parsed(execution={"executor": "ray"}).execution.ray
    assert (untold.address, untold.workers, untold.gpus) == (None, "auto", "auto")


def test_candidates_are_compared_only_where_there_are_some() -> None:
    blocks: dict[str, Any] = {
        "model": {"name_or_path": "m", "task": "causal-lm"},
        "data": {"source": "d", "format": "messages"},
        "objectives": [{"metric": "choice_accuracy"}, {"metric": "flops"}],
    }
    found = faults(**blocks)
    assert list(found) == ["objectives.0.metric"]
    assert found["objectives.0.metric"][2] == "name the candidate answers in data.choices"
    blocks["data"]["choices"] = "options"
    assert parsed(**blocks).objectives[0].goal == "max"
    blocks["objectives"][0] = {"metric": "accuracy"}
    allowed = faults(**blocks)["objectives.0.metric"][1]
    assert allowed == "loss, token_accuracy, exact_match, choice_accuracy"


@pytest.mark.parametrize(
    ("blocks", "key"),
    [
        ({"training": {"micro_batch_size": 64}}, "training.micro_batch_size"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
        ({"training": {"warmup_ratio": 1}}, "training.warmup_ratio"),
        ({"training": {"epochs": 0.5}}, "training.epochs"),
        ({"study": {"seed": -1}}, "study.seed"),
        ({"study": {"seed": True}}, "study.seed"),
        ({"study": {"name": 3}}, "study.name"),
        ({"data": {"source": "d", "text": ["a", "b", "c"]}}, "data.text"),
        ({"data": {"source": "d", "text": ["a", "a"]}}, "data.text"),
        ({"data": {"source": "d", "splits": {"validation": None}}}, "data.splits.validation"),
        ({"data": {"source": "d", "splits": {"validation": "train"}}}, "data.splits.validation"),
        ({"data": {"source": "d", "splits": {"validation": 1.0}}}, "data.splits.validation"),
        ({"data": {"source": "d", "splits": {"validation": 0.6, "test": 0.4}}},
         "data.splits.test"),
        ({"data": {"source": "d", "limit": {"train": 0}}}, "data.limit.train"),
        ({"search": {"pack": "big"}}, "search.pack"),
        ({"search": {"proposals": 0}}, "search.proposals"),
        ({"search": {"rungs": [0.5]}}, "search.rungs"),
        ({"search": {"rungs": [0.0, 1.0]}}, "search.rungs.0"),
        ({"search": {"enqueue": [{"lora": [{"layers": "all"}]}]}},
         "search.enqueue.0.lora.0.layers"),
        ({"search": {"portfolio": "yes"}}, "search.portfolio"),
        ({"search": {"warm_start": ["old", "a b"]}}, "search.warm_start.1"),
        ({"search": {"warm_start": ["old", "old"]}}, "search.warm_start"),
        ({"search": {"warm_start": ["old", "demo"]}}, "search.warm_start.1"),
        ({"search": {"warm_start_trials": 0}}, "search.warm_start_trials"),
        ({"space": {}}, "space"),
        ({"space": 3}, "space"),
        ({"execution": {"devices": "cuda:x"}}, "execution.devices"),
        ({"execution": {"devices": "cpu,cuda:0"}}, "execution.devices"),
        ({"execution": {"devices": ["cuda:0", "cuda:0"]}}, "execution.devices"),
        ({"execution": {"pack_limit": 30}}, "execution.pack_limit"),
        ({"execution": {"ray": {"address": "head"}}}, "execution.ray.address"),
        ({"execution": {"ray": {"address": "ray://head:10001"}}}, "execution.ray.address"),
        ({"execution": {"ray": {"workers": 0}}}, "execution.ray.workers"),
        ({"execution": {"ray": {"gpus": 2}}}, "execution.ray.gpus"),
        ({"execution": {"ray": {"gpus": -0.5}}}, "execution.ray.gpus"),
        ({"execution": {"ray": {"cpus": 0}}}, "execution.ray.cpus"),
        ({"execution": {"ray": {"memory": "much"}}}, "execution.ray.memory"),
        ({"execution": {"ray": {"num_gpus": 1}}}, "execution.ray.num_gpus"),
        ({"budget": {"optimizer_steps": 0}}, "budget.optimizer_steps"),
        ({"execution": 3}, "execution"),
        ({"budget": {"gpu_hours": "24h"}}, "budget.gpu_hours"),
        ({"schema": "autopeft/config/v1"}, "schema"),
        ({"constraints": [{"metric": "flops", "cap": 1}, {"metric": "flops", "cap": 2}]},
         "constraints.1.metric"),
        ({"constraints": [{"metric": "flops"}]}, "constraints.0.cap"),
        ({"constraints": [{"metric": "accuracy", "cap": 1}]}, "constraints.0.metric"),
        ({"budget": {"min_gain": 0}}, "budget.min_gain"),
        ({"budget": {"min_gain": 1.5}}, "budget.min_gain"),
        ({"budget": {"min_gain": 0.01}, "search": {"searcher": "random"}}, "budget.min_gain"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(blocks: dict[str, Any], key: str) -> None:
    assert list(faults(**blocks)) == [key]


def test_site_patterns_are_checked_together() -> None:
    found = faults(model={"name_or_path": "m", "sites": {"querry": "q", "key": "("}})
    assert set(found) == {"model.sites.querry", "model.sites.key"}


# -- paths --------------------------------------------------------------------------------------


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    plain = {
        "model": {"name_or_path": "weights"},
        "data": {"source": "rows.csv"},
        "space": "spaces/mine.yaml",
    }
    definition = parse_definition(plain, where="s.yaml", base=tmp_path)
    assert definition.model.name_or_path == str(tmp_path / "weights")
    assert definition.data.source == str(tmp_path / "rows.csv")
    assert definition.space == str(tmp_path / "spaces/mine.yaml")
    assert plain["data"] == {"source": "rows.csv"}


def test_names_stay_names(tmp_path: Path) -> None:
    plain = {"model": {"name_or_path": "org/m"}, "data": {"source": "org/d"}, "space": "mixed"}
    definition = parse_definition(plain, where="s.yaml", base=tmp_path)
    assert definition.model.name_or_path == "org/m"
    assert definition.data.source == "org/d"
    assert definition.space == "mixed"


def test_a_file_names_its_study(tmp_path: Path) -> None:
    path = tmp_path / "rte minilm.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {source: ./d, revision: 12e5}\n")
    definition = load_definition(path, ["budget.trials=7"])
    assert definition.study.name == "rte-minilm"
    assert definition.data.source == str(tmp_path / "d")
    assert definition.data.revision == "12e5"
    assert definition.budget.trials == 7


def test_faults_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("modell: {}\n")
    with pytest.raises(InputError) as error:
        load_definition(path)
    assert {fault.where for fault in error.value.faults} == {str(path)}


# -- round trips --------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1).filter(
    lambda value: bool(value.strip())
)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
positive = st.floats(1e-9, 1e9)
count = st.integers(1, 10**6)
maybe_count = st.none() | count


@st.composite
def plains(draw: st.DrawFn) -> dict[str, Any]:
    task = draw(st.sampled_from(["sequence-classification", "regression", "causal-lm"]))
    quality = {
        "sequence-classification": ["accuracy", "f1", "loss"],
        "regression": ["pearson"],
        "causal-lm": ["loss", "exact_match"],
    }
    template = text.map(lambda value: value.replace("{", "").replace("}", "") + "{a}")
    rows: dict[str, Any] = {
        "text": draw(st.lists(text, min_size=1, max_size=2, unique=True)),
        "label": draw(text),
    }
    if task == "causal-lm":
        rows = {
            "format": "prompt-completion",
            "prompt": draw(template),
            "completion": draw(template),
            "choices": draw(st.none() | st.lists(text, min_size=2, unique=True)),
        }
    batch = draw(count)
    shares = draw(st.lists(st.floats(0.01, 0.99), unique=True, max_size=3))
    return {
        "study": {"name": draw(name), "seed": draw(st.integers(0, 2**32 - 1))},
        "model": {
            "name_or_path": draw(text),
            "revision": draw(st.none() | text),
            "task": task,
            "sites": draw(st.none() | st.just({"query": r"layer\.(\d+)\.q"})),
        },
        "data": {
            "source": draw(text),
            **rows,
            "splits": {"validation": draw(st.floats(0.01, 0.5)), "test": draw(st.none())},
            "limit": {"train": draw(maybe_count)},
        },
        "training": {
            "batch_size": batch,
            "micro_batch_size": draw(st.just("auto") | st.integers(1, batch)),
            "learning_rate": draw(positive),
            "weight_decay": draw(st.just(0.0) | positive),
        },
        "objectives": [
            {"metric": draw(st.sampled_from(quality[task]))},
            {
                "metric": draw(st.sampled_from(["trainable_params", "train_seconds"])),
                "cap": draw(st.none() | positive),
            },
        ],
        "space": draw(name | st.just({"methods": {"lora": {"rank": {"choice": [1, 2]}}}})),
        "search": {"rungs": [*sorted(shares), 1.0], "pack": draw(st.just("auto") | count)},
        "deploy": draw(st.sampled_from([[], ["peft"]])),
        "budget": {
            "wall_clock": draw(st.none() | count.map(lambda s: f"{s / 8}s")),
            "min_gain": draw(st.none() | st.floats(1e-6, 0.9)),
        },
    }


@given(plains())
@settings(max_examples=60, deadline=None)
def test_plain_form_gives_the_definition_back(plain: dict[str, Any]) -> None:
    definition = parse_definition(plain, where="s.yaml", base=None)
    through_json = json.loads(json.dumps(definition.to_plain(), allow_nan=False))
    assert parse_definition(through_json, where="s.yaml", base=None) == definition
    assert difference(definition.to_plain(), through_json) == []


@given(plains())
@settings(max_examples=60, deadline=None)
def test_rendered_text_gives_the_definition_back(plain: dict[str, Any]) -> None:
    definition = parse_definition(plain, where="s.yaml", base=None)
    content = parse_yaml(render(definition), "s.yaml")
    assert parse_definition(content, where="s.yaml", base=None) == definition


# -- resuming -----------------------------------------------------------------------------------


def test_only_budget_execution_and_name_may_differ() -> None:
    old = default_definition().to_plain()
    free = ["study.name=other", "budget.trials=99", "execution.devices=cpu"]
    assert difference(old, default_definition(free).to_plain()) == []
    held = ["study.seed=1", "objectives.1.cap=2M", "space=mixed"]
    new = parse_definition(with_overrides(old, held), where="", base=None).to_plain()
    found = difference(old, new)
    assert [fault.key for fault in found] == ["study.seed", "objectives.1.cap", "space"]
    assert (found[0].given, found[0].allowed) == ("1", "0")
    one_more = [*old["objectives"], {"metric": "flops"}]
    assert [f.key for f in difference(old, old | {"objectives": one_more})] == ["objectives"]


# -- lightness -----------------------------------------------------------------------------------


def test_no_heavy_package_is_imported() -> None:
    code = (
        "import sys, autopeft.study.definition, autopeft.study.configuration_check;"
        "import autopeft.export.study_file, autopeft.export.configuration_file;"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.strip()) == (0, "")


@pytest.mark.parametrize(
    ("written", "kind"), [("none", "none"), ("int8", "int8"), ("8bit", "int8"), ("4bit", "nf4")]
)
def test_quantization_is_known_by_peoples_names_for_it(written: str, kind: str) -> None:
    plain = {"model": {"name_or_path": "m", "quantization": written}, "data": {"source": "d"}}
    model = parse_definition(plain, where="s.yaml", base=None).model
    assert model.quantization == kind
