import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.study.template import parse_template

texts = st.text(max_size=12)
columns = st.text(
    st.characters(exclude_characters="{}!:[]", exclude_categories=("Cs",)), min_size=1, max_size=8
).filter(lambda name: bool(name.strip()))


def braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def test_a_name_is_a_column() -> None:
    template = parse_template("the question")
    assert template.columns == ("the question",)
    assert template.fill({"the question": "{why}?"}) == "{why}?"


def test_columns_stand_where_they_are_named() -> None:
    template = parse_template("Q: {a.b}\nCode: {{{x}}}\n{a.b}")
    assert template.columns == ("a.b", "x")
    assert template.fill({"a.b": "1", "x": "{x}"}) == "Q: 1\nCode: {{x}}\n1"


@given(st.lists(st.tuples(texts, columns), min_size=1, max_size=4), texts)
def test_any_texts_around_any_columns(parts: list[tuple[str, str]], end: str) -> None:
    written = "".join(f"{braced(text)}{{{column}}}" for text, column in parts) + braced(end)
    values = {column: f"<{index}{{}}>" for index, (_, column) in enumerate(parts)}
    template = parse_template(written)
    assert set(template.columns) == set(values)
    expected = "".join(text + values[column] for text, column in parts) + end
    assert template.fill(values) == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{a", "expected '}'"),
        ("a}", "Single '}'"),
        ("{}", "without a column's name"),
        ("{ }", "without a column's name"),
        ("{a:>10}", "more than a column's name"),
        ("{a!r}", "more than a column's name"),
        ("{{a}}", "no place for a column"),
    ],
)
def test_what_is_no_template(written: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_template(written)
