import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import InputError
from autopeft.study.metrics import CAUSAL_LM
from autopeft.training.answer_metrics import AnswerScores, compute_answers, constant_answers
from autopeft.training.data.examples import Choices, Examples
from autopeft.training.setup import extra_metrics

PROMPT = [7, 8]


def examples(answers: Sequence[Sequence[int]], choices: Choices | None = None) -> Examples:
    """Answers behind a prompt of two tokens."""
    return Examples(
        tuple(np.array([*PROMPT, *answer], dtype=np.int32) for answer in answers),
        np.zeros(len(answers), dtype=np.int64),
        targets=tuple(np.array([False, False, *[True] * len(answer)]) for answer in answers),
        choices=choices,
    )


def candidates(rows: Sequence[tuple[int, Sequence[Sequence[int]]]]) -> Choices:
    """Rows of (number of the right candidate, candidates)."""
    own = [row for row, (_, some) in enumerate(rows) for _ in some]
    right = [number == truth for truth, some in rows for number in range(len(some))]
    answers = [answer for _, some in rows for answer in some]
    return Choices(examples(answers), np.array(own), np.array(right))


def scores(rows: Sequence[Sequence[tuple[float, bool]]], **more: Any) -> AnswerScores:
    """Each row's (log-likelihood, hit) per target."""
    flat = [(number, *target) for number, row in enumerate(rows) for target in row]
    row, likelihood, hit = (np.array(column) for column in zip(*flat, strict=True))
    return AnswerScores(likelihood, hit, row, **more)


# -- values ---------------------------------------------------------------------------------------


def test_every_quality_of_answers_has_a_value_and_a_constant() -> None:
    own = scores([[(-1.0, True), (-3.0, False)]], candidate_log_likelihood=np.array([-2.0, -1.0]))
    choices = candidates([(0, [[1], [2]])])
    for metric in extra_metrics(CAUSAL_LM, choices=True):
        assert math.isfinite(compute_answers(metric, own, choices))
        part = examples([[1]], choices)
        assert math.isfinite(constant_answers(metric, part, part, n_vocabulary=9))
    assert "choice_accuracy" not in extra_metrics(CAUSAL_LM)
    assert set(extra_metrics(CAUSAL_LM)) == {"loss", "token_accuracy", "exact_match"}


def test_closed_forms() -> None:
    own = scores([[(-1.0, True), (-3.0, True)], [(-0.5, True), (-2.5, False), (-0.5, True)]])
    assert compute_answers("loss", own) == pytest.approx(7.5 / 5)  # not (2 + 3.5 / 3) / 2
    assert compute_answers("token_accuracy", own) == pytest.approx(4 / 5)
    assert compute_answers("exact_match", own) == 0.5


@given(st.lists(st.lists(st.tuples(st.floats(-9, 0), st.booleans()), min_size=1), min_size=1))
def test_values_are_those_of_each_row_counted(rows: list[list[tuple[float, bool]]]) -> None:
    own = scores(rows)
    targets = [target for row in rows for target in row]
    assert compute_answers("loss", own) == pytest.approx(
        -math.fsum(likelihood for likelihood, _ in targets) / len(targets)
    )
    exact = sum(all(hit for _, hit in row) for row in rows) / len(rows)
    assert compute_answers("exact_match", own) == pytest.approx(exact)


def test_the_likeliest_candidate_counts() -> None:
    choices = candidates([(0, [[1], [2]]), (2, [[1], [2], [3]]), (1, [[1], [2]])])
    likelihoods = np.array([-1.0, -2.0, -5.0, -4.0, -3.0, -1.0, -1.0])
    own = scores([[(-1.0, True)]] * 3, candidate_log_likelihood=likelihoods)
    assert compute_answers("choice_accuracy", own, choices) == pytest.approx(2 / 3)  # a tie loses


@pytest.mark.parametrize("metric", ["loss", "token_accuracy", "exact_match", "choice_accuracy"])
def test_unusable_scores_raise(metric: str) -> None:
    with pytest.raises(ValueError, match=f"{metric} of no targets"):
        compute_answers(metric, scores([[(-math.inf, True)]]))
    empty = np.zeros(0)
    with pytest.raises(ValueError, match=f"{metric} of no targets"):
        compute_answers(metric, AnswerScores(empty, empty.astype(bool), empty))
    with pytest.raises(ValueError, match="without candidates"):
        compute_answers("choice_accuracy", scores([[(-1.0, True)]]))
    with pytest.raises(InputError, match="allowed: loss, token_accuracy"):
        compute_answers("accuracy", scores([[(-1.0, True)]]))


# -- the constant predictor -----------------------------------------------------------------------


def test_constant_predictor_of_tokens() -> None:
    train, validation = examples([[1, 2], [2, 3]]), examples([[2, 2, 1], [4]])
    # One is added to each of 10 tokens: 2 was seen twice, 1 and 3 once.
    expected = -(2 * math.log(3 / 14) + math.log(2 / 14) + math.log(1 / 14)) / 4
    assert constant_answers("loss", train, validation, n_vocabulary=10) == pytest.approx(expected)
    assert constant_answers("token_accuracy", train, validation, n_vocabulary=10) == 0.5
    with pytest.raises(ValueError, match="beyond the vocabulary of 4"):
        constant_answers("loss", train, validation, n_vocabulary=4)
    with pytest.raises(InputError, match="allowed: loss"):
        constant_answers("f1", train, validation, n_vocabulary=10)


def test_constant_predictor_of_answers() -> None:
    train = examples([[2, 1], [1, 1], [1, 1], [2, 1]])  # the lowest of equals
    validation = examples([[1, 1], [2, 1], [1, 1, 1]])
    assert constant_answers("exact_match", train, validation, n_vocabulary=9) == pytest.approx(
        1 / 3
    )
    unlike = examples([[5, 5], [6, 6]])
    assert constant_answers("exact_match", unlike, validation, n_vocabulary=9) == 0.0


def test_constant_predictor_of_one_list_is_the_usual_answer() -> None:
    choices = candidates([(0, [[1], [2]]), (1, [[1], [2]]), (1, [[1], [2]])])
    validation = examples([[1], [2], [2]], choices)
    usual = examples([[2], [3], [3], [3], [1], [2]])  # 3 is no candidate
    assert constant_answers("choice_accuracy", usual, validation, n_vocabulary=9) == (
        pytest.approx(2 / 3)
    )
    even = examples([[2], [1]])  # the first of equals
    assert constant_answers("choice_accuracy", even, validation, n_vocabulary=9) == (
        pytest.approx(1 / 3)
    )


def test_earlier_answers_of_a_chat_are_not_the_usual_answer() -> None:
    choices = candidates([(0, [[1], [2]])])
    chat = Examples(
        (np.array([7, 1, 1, 7, 2]), np.array([7, 2])),
        np.zeros(2, dtype=np.int64),
        targets=(np.array([False, True, True, False, True]), np.array([False, True])),
    )
    part = examples([[1]], choices)
    assert constant_answers("choice_accuracy", chat, part, n_vocabulary=9) == 0.0


def test_constant_predictor_of_several_lists_guesses() -> None:
    choices = candidates([(0, [[1], [2]]), (1, [[1], [2], [3], [4]])])
    part = examples([[1], [2]], choices)
    assert constant_answers("choice_accuracy", part, part, n_vocabulary=9) == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match="without candidates"):
        constant_answers("choice_accuracy", part, examples([[1]]), n_vocabulary=9)


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=20),
)
def test_the_constant_predictor_counts_train(
    train: list[list[int]], validation: list[list[int]]
) -> None:
    own = examples(train)
    tokens = Counter(token for answer in train for token in answer)
    assert constant_answers("token_accuracy", own, own, n_vocabulary=6) == pytest.approx(
        max(tokens.values()) / sum(tokens.values())
    )
    answers = Counter(map(tuple, train))
    assert constant_answers("exact_match", own, own, n_vocabulary=6) == pytest.approx(
        max(answers.values()) / len(train)
    )
    asked = [token for answer in validation for token in answer]
    shares = [(tokens[token] + 1) / (sum(tokens.values()) + 6) for token in asked]
    loss = constant_answers("loss", own, examples(validation), n_vocabulary=6)
    assert loss == pytest.approx(-math.log(math.prod(shares)) / len(asked))
