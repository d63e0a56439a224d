"""The `data` block of a study file: which rows, and how they are read.

Each format has keys of its own. Those of another format are null, so that nobody believes that
they do something.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from autopeft.study.blocks import Block, MaybeText, Text, read_task, read_with
from autopeft.study.faults import refusal
from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION
from autopeft.study.readers import Reader, each, nullable, one_of, string, whole
from autopeft.study.template import parse_template

Format = Literal["classification", "prompt-completion", "messages"]

ANSWER_FORMATS = ("prompt-completion", "messages")
"""The formats of causal-lm; the other tasks have `classification`."""


class Splits(Block):
    """Which rows train, which choose, which are locked away."""

    train: Text = Field(default="train", description="name of the split that trains")
    validation: str | float = Field(
        default="validation", description="a split, or a share of train (seeded, stratified)"
    )
    test: str | float | None = Field(
        default=None, description="a split, a share of train, or null (locked away)"
    )

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> str | float | None:
        if isinstance(value, str):
            return _named_split(value, info)
        if value is None and info.field_name == "test":
            return None
        if isinstance(value, bool) or not isinstance(value, float) or not 0.0 < value < 1.0:
            hint = "a search needs validation rows, write 0.1" if value is None else ""
            raise refusal(value, "a split's name, or a share of train > 0 and < 1", hint)
        first = info.data.get("validation")
        if info.field_name == "test" and isinstance(first, float) and first + value >= 1.0:
            raise refusal(value, f"a share < {1.0 - first:g}, so that rows are left to train on")
        return value


def _named_split(value: str, info: ValidationInfo) -> str:
    name: str = string("a split's name")(value)
    for other, taken in info.data.items():
        if taken == name:
            raise refusal(value, f"another split than {other}'s", "write a share such as 0.1")
    return name


class Limit(Block):
    """Caps on rows, for a quick look."""

    train: Annotated[int | None, read_with(nullable(whole(1)))] = Field(
        default=None, description="at most so many training rows"
    )
    validation: Annotated[int | None, read_with(nullable(whole(1)))] = Field(
        default=None, description="at most so many validation rows"
    )


def _text_of_row(value: Any) -> str:
    allowed = 'a column, or a template such as "{instruction}\\n{input}"'
    if isinstance(value, Mapping):  # what {name} without quotes is to YAML
        raise refusal(value, allowed, "put the template in quotes")
    text: str = string(allowed)(value)
    try:
        parse_template(text)
    except ValueError as error:
        raise refusal(value, allowed, f"{error}; a brace is written {{{{ or }}}}") from error
    return text


_columns = each(string("a column's name"), allowed="one or two columns", least=1, most=2)
_candidates = each(string("a candidate answer"), allowed="two candidates or more", least=2)


class _Key(NamedTuple):
    """A key that one format has: its default there, and how it is read."""

    format: Format
    default: Any
    read: Reader


_KEYS: Mapping[str, _Key] = {
    "text": _Key("classification", ("text",), _columns),
    "label": _Key("classification", "label", string("a column's name")),
    "prompt": _Key("prompt-completion", "prompt", _text_of_row),
    "completion": _Key("prompt-completion", "completion", _text_of_row),
    "messages": _Key("messages", "messages", string("a column's name")),
}


class DataBlock(Block):
    """The rows, and what is read of them.

    A key of the format that is absent or null takes its default; a key of another format is null.
    Whether the format fits the task is checked where the validation context tells the `task`.
    """

    source: Text = Field(description="hub id, folder, csv, json or parquet file, builtin:...")
    config: MaybeText = Field(default=None, description="the hub data set's configuration")
    revision: MaybeText = Field(default=None, description="branch, tag or commit on the hub")
    format: Annotated[
        Format, read_with(one_of("classification", "prompt-completion", "messages"))
    ] = Field(
        default="classification",
        validate_default=True,
        description="classification, prompt-completion, messages",
    )
    text: tuple[str, ...] | None = Field(
        default=None, validate_default=True, description="the column read, or two for pairs"
    )
    label: str | None = Field(
        default=None, validate_default=True, description="the column predicted"
    )
    prompt: str | None = Field(
        default=None,
        validate_default=True,
        description='what comes before the answer: a column, or "{a}\\n{b}"',
    )
    completion: str | None = Field(
        default=None,
        validate_default=True,
        description="the answer, which is learnt: a column or template",
    )
    messages: str | None = Field(
        default=None,
        validate_default=True,
        description="the column of chats: lists of {role, content}",
    )
    choices: str | tuple[str, ...] | None = Field(
        default=None, description="candidate answers: a list, or a column of lists"
    )
    splits: Splits = Splits()
    limit: Limit = Limit()
    max_length: Annotated[int, read_with(whole(4, hint="the length in tokens"))] = Field(
        default=128, description="tokens kept of a row"
    )

    @field_validator("format", mode="after")
    @classmethod
    def _fits_the_task(cls, value: Format, info: ValidationInfo) -> Format:
        task = (info.context or {}).get("task")
        if task == CAUSAL_LM and value not in ANSWER_FORMATS:
            hint = f"the task {CAUSAL_LM} learns answers, not labels"
            raise refusal(value, ", ".join(ANSWER_FORMATS), hint)
        if task not in (None, CAUSAL_LM) and value in ANSWER_FORMATS:
            hint = f"the task is {task}: write model.task: {CAUSAL_LM} to learn answers"
            raise refusal(value, "classification", hint)
        return value

    @field_validator(*_KEYS, mode="before")
    @classmethod
    def _key_of_its_format(cls, value: Any, info: ValidationInfo) -> Any:
        own, chosen = _KEYS[str(info.field_name)], info.data.get("format")
        if chosen in (own.format, None):  # None: the format's own fault is told
            return own.read(own.default if value is None else value)
        if value is not None:
            hint = f"the format is {chosen}: write data.format: {own.format} to use it"
            raise refusal(value, "null", hint)
        return None

    @field_validator("choices", mode="before")
    @classmethod
    def _choices(cls, value: Any, info: ValidationInfo) -> str | tuple[str, ...] | None:
        if value is None:
            return None
        if info.data.get("format") == "classification":
            raise refusal(value, "null", "the format is classification: its classes are labels")
        if not isinstance(value, (str, list, tuple)):
            raise refusal(value, "a column of lists, or a list of candidate answers")
        read = string("a column's name") if isinstance(value, str) else _candidates
        found: str | tuple[str, ...] = read(value)
        return found


def task_context(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The validation context for a file's content: the task that its data have to fit.

    The task is left out where it is at fault itself.
    """
    model = plain.get("model")
    written = model.get("task", CLASSIFICATION) if isinstance(model, Mapping) else CLASSIFICATION
    try:
        return {"task": read_task(written)}
    except PydanticCustomError:
        return {}
