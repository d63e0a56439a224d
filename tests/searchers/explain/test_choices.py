import numpy as np
import pytest

from autopeft.configuration import Configuration
from autopeft.searchers.explain.choices import Choice, Choices, in_words


def _choice(choices: Choices, name: str) -> Choice:
    return next(each for each in choices.choices if each.name == name)


def _row(choices: Choices, X, row: int = 0) -> dict[str, float]:
    return {name: value for name, value in zip(choices.names, X[row], strict=True) if value}


@pytest.fixture
def both(configure) -> Choices:
    """Only LoRA, only the adapter, both."""
    return Choices.of(
        [
            configure(rank=8, layers=(0, 1), sites=("query", "value"), rate=1e-2),
            configure(size=32, other_layers=(4,), rate=1e-3),
            configure(rank=2, layers=(5,), sites=("value",), size=16, other_layers=(3,)),
        ]
    )


def test_what_differs_is_a_choice_and_what_does_not_is_none(both: Choices) -> None:
    assert {choice.name for choice in both.choices} == {
        "lora.present", "lora.rank", "lora.sites", "lora.layers",
        "serial_adapter.present", "serial_adapter.size", "serial_adapter.layers",
        "training.learning_rate",
    }  # fmt: skip


def test_what_one_row_alone_has_chosen_is_no_choice_of_the_method(configure) -> None:
    rows = [configure(rank=8), configure(rank=8, size=4), configure(rank=8, rate=1e-2)]
    names = {choice.name for choice in Choices.of(rows).choices}
    assert names == {"serial_adapter.present", "training.learning_rate"}


def test_layers_that_all_methods_share_are_one_choice(configure) -> None:
    rows = [
        configure(rank=8, layers=(4, 5), size=4, other_layers=(4, 5)),
        configure(rank=8, layers=(5,)),
    ]
    assert "layers" in {choice.name for choice in Choices.of(rows).choices}
    apart = [*rows, configure(rank=8, layers=(1,), size=4, other_layers=(2,))]
    assert {"lora.layers", "serial_adapter.layers"} <= {
        choice.name for choice in Choices.of(apart).choices
    }


def test_sizes_count_in_doublings_and_absence_is_nothing(both: Choices) -> None:
    rank = both.X[:, both.names.index("lora.rank")]
    assert list(rank) == [3.0, 0.0, 1.0]
    rate = both.X[:, both.names.index("training.learning_rate")]
    assert list(rate) == pytest.approx([-2.0, -3.0, -3.0])


def test_what_is_made_for_a_method_is_exchanged_among_its_rows_only(both: Choices) -> None:
    rank = _choice(both, "lora.rank")
    assert list(both.donors(rank)) == [0, 2]
    mixed = both.exchanged(rank, both.X, both.X[[2, 0, 0]])
    column = both.names.index("lora.rank")
    assert list(mixed[:, column]) == [1.0, 0.0, 3.0]
    rest = [i for i in range(len(both.names)) if i != column]
    assert (mixed[:, rest] == both.X[:, rest]).all()


def test_presence_brings_all_that_the_donor_chose(both: Choices) -> None:
    lora = _choice(both, "lora.present")
    gained = _row(both, both.exchanged(lora, both.X[[1]], both.X[[0]]))
    given = _row(both, both.X, 0)
    assert {k: v for k, v in gained.items() if k.startswith("lora")} == {
        k: v for k, v in given.items() if k.startswith("lora")
    }
    assert gained["serial_adapter.size"] == 5.0
    assert gained["training.learning_rate"] == pytest.approx(-3.0)


def test_presence_leaves_a_method_out_but_never_the_last_one(both: Choices) -> None:
    lora = _choice(both, "lora.present")
    lost = _row(both, both.exchanged(lora, both.X[[2]], both.X[[1]]))
    assert not [name for name in lost if name.startswith("lora")]
    assert (both.exchanged(lora, both.X[[0]], both.X[[1]]) == both.X[[0]]).all()


def test_where_both_have_the_method_presence_changes_nothing(both: Choices) -> None:
    lora = _choice(both, "lora.present")
    assert (both.exchanged(lora, both.X[[0]], both.X[[2]]) == both.X[[0]]).all()


def test_inputs_hold_what_the_methods_add_up_to(both: Choices) -> None:
    added = both.inputs(both.X)[:, len(both.names) :]
    lora, adapter = np.array([8 * 2 * 2, 0, 2]), np.array([0, 32, 16])
    expected = np.log2(1 + np.column_stack([lora, adapter, lora + adapter]))
    assert added == pytest.approx(expected)


def test_a_head_alone_has_no_method(configure) -> None:
    choices = Choices.of([configure(), configure(rate=1e-2)])
    assert [choice.name for choice in choices.choices] == ["training.learning_rate"]
    assert isinstance(configure(), Configuration)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("serial_adapter.present", "serial adapter or not"),
        ("lora.rank", "lora rank"),
        ("training.learning_rate", "learning rate"),
        ("layers", "layers"),
        ("sparsity.rule", "sparsity rule"),
    ],
)
def test_choices_in_words(name: str, words: str) -> None:
    assert in_words(name) == words
