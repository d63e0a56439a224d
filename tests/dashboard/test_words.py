from datetime import UTC, datetime, timedelta

import pytest
from markdown_it import MarkdownIt

from autopeft.configuration import Configuration, Group
from dashboard import words

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}


@pytest.mark.parametrize(
    "text",
    ["50% <b>&_x_ [z](w)", "a*b*c `d` #e", "# head", "1. one", "- item", "<script>", "a\\b"],
)
def test_escaped_markdown_shows_the_text_itself(text: str) -> None:
    (paragraph,) = [
        token
        for token in MarkdownIt("commonmark").parse(words.markdown(text))
        if token.type == "inline"
    ]
    assert {child.type for child in paragraph.children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in paragraph.children or []) == text


def test_streamlits_own_directives_are_escaped() -> None:
    assert words.markdown(":red[x] $y$") == r"\:red\[x\] \$y\$"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (294912, "294,912"),
        (0.87654321, "0.8765"),
        (None, "-"),
        (float("nan"), "-"),
        (1e-5, "1e-05"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(294912, "295k"), (2e6, "2M"), (768, "768")])
def test_compact(value: float, text: str) -> None:
    assert words.compact(value) == text


def test_metric_values_have_units() -> None:
    assert words.metric_value("accuracy", 0.9) == "0.9000"
    assert words.metric_value("adapter_bytes", 3 * 2**20) == "3 MiB"
    assert words.metric_value("train_seconds", 2.5) == "2.5 s"
    assert words.metric_value("train_seconds", 150) == "2 min 30 s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3700, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "just now"), (42, "42 s ago"), (3700, "1 h ago")]
)
def test_ago(seconds: float, text: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert words.ago(now - timedelta(seconds=seconds), now) == text


def test_summary_names_methods_sizes_sites_and_layers() -> None:
    groups = [
        Group.of("lora", [0, 3, 4, 5], ["value"], rank=8),
        Group.of("prefix", [2], length=4),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    assert words.summary(configuration) == (
        "lora rank 8 on value, layers 0, 3-5; prefix length 4, layer 2"
    )
    assert words.summary(Configuration.of([], training=TRAINING)) == "head only"


def test_commands_quote_names_and_name_the_database() -> None:
    text = words.commands("a b;c", 17, "sqlite:////data/x y.db")
    assert text.splitlines() == [
        "autopeft export 'a b;c' --trial 17 --storage 'sqlite:////data/x y.db'"
        " -o a-b-c-trial-17.yaml",
        "autopeft train a-b-c-trial-17.yaml -o a-b-c-trial-17/",
    ]


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@db/x", "postgresql://db/x?password=secret"]
)
def test_passwords_are_not_shown(url: str) -> None:
    assert "secret" not in words.commands("demo", 1, url) + words.place(url)
    assert '--storage "$AUTOPEFT_STORAGE"' in words.commands("demo", 1, url)


def test_the_default_database_needs_no_flag() -> None:
    assert "--storage" not in words.commands("demo", 1, "sqlite:///autopeft.db")
