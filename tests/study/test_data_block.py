from typing import Any

import pytest

from autopeft.errors import InputError
from autopeft.study.data_block import DataBlock
from autopeft.study.definition import StudyDefinition, difference, parse_definition

CAUSAL = {"name_or_path": "m", "task": "causal-lm"}
PROMPTS = {"source": "d", "format": "prompt-completion"}


def parsed(data: dict[str, Any], **blocks: Any) -> StudyDefinition:
    plain = {"model": CAUSAL, "data": data} | blocks
    return parse_definition(plain, where="s.yaml", base=None)


def faults(data: dict[str, Any], **blocks: Any) -> dict[str, tuple[str, str, str]]:
    with pytest.raises(InputError) as error:
        parsed(data, **blocks)
    return {fault.key: (fault.given, fault.allowed, fault.hint) for fault in error.value.faults}


def keys(data: DataBlock) -> tuple[Any, ...]:
    return (data.text, data.label, data.prompt, data.completion, data.messages, data.choices)


# -- what is accepted ---------------------------------------------------------------------------


def test_each_format_has_keys_of_its_own() -> None:
    assert keys(DataBlock(source="d")) == (("text",), "label", None, None, None, None)
    assert keys(parsed(PROMPTS).data) == (None, None, "prompt", "completion", None, None)
    chats = {"source": "d", "format": "messages"}
    assert keys(parsed(chats).data) == (None, None, None, None, "messages", None)


def test_templates_and_candidates() -> None:
    data = parsed(
        PROMPTS | {"prompt": "{a}\n{b}", "completion": " {c}", "choices": [" yes", " no"]}
    ).data
    assert (data.prompt, data.completion, data.choices) == ("{a}\n{b}", " {c}", (" yes", " no"))
    assert parsed(PROMPTS | {"choices": "options"}).data.choices == "options"


@pytest.mark.parametrize("task", ["causal-lm", "CAUSAL_LM"])
def test_both_spellings_of_the_task(task: str) -> None:
    definition = parsed(PROMPTS, model={"name_or_path": "m", "task": task})
    assert definition.model.task == "causal-lm"
    assert [(o.metric, o.goal) for o in definition.objectives] == [
        ("loss", "min"),
        ("trainable_params", "min"),
    ]


def test_a_study_stored_before_there_were_answers_is_resumed() -> None:
    plain = {"model": {"name_or_path": "m"}, "data": {"source": "d", "text": "a"}}
    new = parse_definition(plain, where="", base=None).to_plain()
    stored = new | {
        "data": {
            key: value
            for key, value in new["data"].items()
            if key not in ("prompt", "completion", "messages", "choices")
        }
    }
    assert difference(stored, new) == []
    other = parse_definition(plain | {"data": {"source": "d", "text": "b"}}, where="", base=None)
    assert [fault.key for fault in difference(stored, other.to_plain())] == ["data.text.0"]


def test_other_answers_are_another_study() -> None:
    old, new = parsed(PROMPTS).to_plain(), parsed(PROMPTS | {"prompt": "{a}"}).to_plain()
    assert [fault.key for fault in difference(old, new)] == ["data.prompt"]


# -- what is refused ----------------------------------------------------------------------------


def test_the_format_fits_the_task() -> None:
    found = faults({"source": "d"})
    assert found == {
        "data.format": (
            "classification",
            "prompt-completion, messages",
            "the task causal-lm learns answers, not labels",
        )
    }
    found = faults(PROMPTS, model={"name_or_path": "m"})
    assert list(found) == ["data.format"]
    assert "write model.task: causal-lm" in found["data.format"][2]


def test_all_faults_at_once() -> None:
    found = faults(
        {
            "source": "d",
            "text": ["a", "b", "c"],
            "prompt": {"a": None},
            "completion": "{a",
            "choices": ["x"],
            "max_length": 1,
        },
        model={"name_or_path": "m", "task": "causal-lm", "dtype": "int3"},
    )
    assert list(found) == [
        "model.dtype",
        "data.format",
        "data.text",
        "data.prompt",
        "data.completion",
        "data.choices",
        "data.max_length",
    ]
    assert found["data.prompt"][2] == "put the template in quotes"


@pytest.mark.parametrize(
    ("data", "model", "key", "hint"),
    [
        (PROMPTS | {"text": "a"}, CAUSAL, "data.text", "write data.format: classification"),
        (PROMPTS | {"messages": "a"}, CAUSAL, "data.messages", "write data.format: messages"),
        ({"source": "d", "prompt": "a"}, {"name_or_path": "m"}, "data.prompt",
         "write data.format: prompt-completion"),
        ({"source": "d", "choices": "a"}, {"name_or_path": "m"}, "data.choices",
         "its classes are labels"),
    ],
)  # fmt: skip
def test_keys_of_another_format(
    data: dict[str, Any], model: dict[str, Any], key: str, hint: str
) -> None:
    found = faults(data, model=model)
    assert list(found) == [key]
    assert found[key][1] == "null"
    assert hint in found[key][2]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"prompt": " "}, "data.prompt"),
        ({"prompt": 3}, "data.prompt"),
        ({"completion": "{}"}, "data.completion"),
        ({"completion": "{a:3}"}, "data.completion"),
        ({"choices": ["a"]}, "data.choices"),
        ({"choices": ["a", "a"]}, "data.choices"),
        ({"choices": ["a", 1]}, "data.choices.1"),
        ({"choices": {"text": "a"}}, "data.choices"),
        ({"choices": ""}, "data.choices"),
        ({"format": "chat"}, "data.format"),
    ],
)
def test_values_that_cannot_be(keys: dict[str, Any], key: str) -> None:
    assert list(faults(PROMPTS | keys)) == [key]


def test_a_fault_of_the_task_is_told_alone() -> None:
    assert list(faults(PROMPTS, model={"name_or_path": "m", "task": "causal"})) == ["model.task"]


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("instruction", "data.prompt"),
        ("output", "data.completion"),
        ("response", "data.completion"),
        ("field_messages", "data.messages"),
        ("chat_template", "data.format: messages (the tokenizer's own template is used)"),
        ("train_on_inputs", "data.completion (only answers are learnt)"),
        ("doc_to_choice", "data.choices"),
    ],
)
def test_foreign_spellings_name_our_key(key: str, ours: str) -> None:
    assert faults(PROMPTS | {key: "x"})[f"data.{key}"][2] == f"write it as `{ours}`"
