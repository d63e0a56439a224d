from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.space.document import parse_yaml
from autopeft.study.layout import WIDTH, flow_text, yaml_text

texts = st.text(st.characters(codec="utf-8")) | st.from_regex(
    r"[-+]?[0-9.]{0,4}([eE][-+]?[0-9]{1,2})?|[0-9]{2}|0x1F|1_000|1:30|yes|on|null|true|~|<<|#a",
    fullmatch=True,
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def no_revision(value: Any) -> bool:
    return "revision" not in str(value)


@given(st.dictionaries(texts, values.filter(no_revision), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_read_again(plain: dict[str, Any]) -> None:
    again = parse_yaml(yaml_text(plain), "text")
    assert again == plain
    assert repr(again) == repr(plain)  # 0 and 0.0 stay apart


def test_short_lists_and_blocks_in_lists_take_one_line() -> None:
    plain = {
        "rungs": [0.1, 1.0],
        "lora": [{"layers": list(range(20)), "sites": ["query", "value"], "rank": 8}] * 2,
        "short": [{"metric": "loss"}],
    }
    assert yaml_text(plain).splitlines() == [
        "rungs: [0.1, 1.0]",
        "lora:",
        f"  - {flow_text(plain['lora'][0])}",
        f"  - {flow_text(plain['lora'][0])}",
        "short: [{metric: loss}]",
    ]
    assert len(flow_text(plain["lora"])) > WIDTH
