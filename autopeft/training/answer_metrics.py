"""Qualities of answers: how each is computed, and what the constant predictor reaches.

All of them come from true prefixes (teacher forcing): what a model says of each token of an
answer, given the prompt and the answer's own tokens before it. Nothing is generated.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from autopeft.errors import Fault, InputError
from autopeft.training.data.examples import Choices, Examples

Answer: TypeAlias = tuple[int, ...]
"""The tokens of an answer."""


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What a model says of the targets of n examples, and of the candidates for their answers.

    Attributes:
        log_likelihood: float [N], in nats, of every target, in the order of the data.
        hit: bool [N], whether the target is the most likely token.
        row: int64 [N], the example of every target.
        candidate_log_likelihood: float [m], summed over a candidate's targets, in the order of
            `Choices`; None where no candidates are compared.
    """

    log_likelihood: np.ndarray
    hit: np.ndarray
    row: np.ndarray
    candidate_log_likelihood: np.ndarray | None = None


def compute_answers(metric: str, scores: AnswerScores, choices: Choices | None = None) -> float:
    """The value of a metric.

    - `loss`: mean negative log-likelihood of a target, in nats; every token weighs the same.
    - `token_accuracy`: share of targets that are the most likely token.
    - `exact_match`: share of examples all of whose targets are: those whose answer greedy decoding
      gives back, end included.
    - `choice_accuracy`: share of examples whose own answer has the highest summed log-likelihood
      of its candidates (the first of equals counts), as `acc` of lm-evaluation-harness; but the
      end of a candidate counts too, so that one that begins another gains nothing by it.

    Raises:
        InputError: An unknown metric.
        ValueError: No targets, values that are not finite, or no candidates where they are needed.
    """
    if metric not in _COMPUTED:
        raise InputError(Fault("metrics", "metric", f"'{metric}'", ", ".join(_COMPUTED)))
    if not len(scores.row) or not np.isfinite(scores.log_likelihood).all():
        raise ValueError(f"{metric} of no targets, or of values that are not finite")
    return _COMPUTED[metric](scores, choices)


def _loss(scores: AnswerScores, choices: Choices | None) -> float:
    return float(-scores.log_likelihood.mean(dtype=np.float64))


def _token_accuracy(scores: AnswerScores, choices: Choices | None) -> float:
    return float(scores.hit.mean())


def _exact_match(scores: AnswerScores, choices: Choices | None) -> float:
    missed = np.unique(scores.row[~scores.hit])
    return 1.0 - len(missed) / len(np.unique(scores.row))


def _choice_accuracy(scores: AnswerScores, choices: Choices | None) -> float:
    likelihoods = scores.candidate_log_likelihood
    if choices is None or likelihoods is None or not np.isfinite(likelihoods).all():
        raise ValueError("choice_accuracy without candidates, or of values that are not finite")
    groups = _groups(choices)
    return float(np.mean([choices.right[own][likelihoods[own].argmax()] for own in groups]))


_COMPUTED: Mapping[str, Callable[[AnswerScores, Choices | None], float]] = {
    "loss": _loss,
    "token_accuracy": _token_accuracy,
    "exact_match": _exact_match,
    "choice_accuracy": _choice_accuracy,
}


def constant_answers(
    metric: str, train: Examples, validation: Examples, *, n_vocabulary: int
) -> float:
    """What a predictor that ignores its input reaches on validation: utility 0 of an objective.

    - `loss`: cross-entropy, in nats, of the frequencies of train's targets, with one added to
      every token of the vocabulary.
    - `token_accuracy`: of train's most frequent target (the lowest of equals).
    - `exact_match`: of train's most frequent answer (the lowest of equals).
    - `choice_accuracy`: where all examples have the same candidates, of the one that is train's
      most frequent answer (the first of equals); else of guessing, 1 / candidates on average.

    Args:
        metric: As for `compute_answers`.
        train: The examples that train, with targets.
        validation: The examples that choose; with choices where `choice_accuracy` is asked.
        n_vocabulary: Tokens that a model may predict.

    Raises:
        InputError: An unknown metric.
        ValueError: A token beyond the vocabulary, or no candidates where they are needed.
    """
    if metric not in _CONSTANTS:
        raise InputError(Fault("metrics", "metric", f"'{metric}'", ", ".join(_CONSTANTS)))
    return _CONSTANTS[metric](train, validation, n_vocabulary)


def _constant_loss(train: Examples, validation: Examples, n_vocabulary: int) -> float:
    known, asked = _targets(train), _targets(validation)
    if max(known.max(), asked.max()) >= n_vocabulary:
        raise ValueError(f"a token beyond the vocabulary of {n_vocabulary}")
    counts = np.bincount(known, minlength=n_vocabulary) + 1
    return float(-np.log(counts / counts.sum())[asked].mean())


def _constant_token_accuracy(train: Examples, validation: Examples, n_vocabulary: int) -> float:
    return float(np.mean(_targets(validation) == np.bincount(_targets(train)).argmax()))


def _constant_exact_match(train: Examples, validation: Examples, n_vocabulary: int) -> float:
    counts = Counter(_answers(train))
    favourite = min(counts, key=lambda answer: (-counts[answer], answer))
    return float(np.mean([answer == favourite for answer in _answers(validation)]))


def _constant_choice_accuracy(train: Examples, validation: Examples, n_vocabulary: int) -> float:
    choices = validation.choices
    if choices is None:
        raise ValueError("choice_accuracy without candidates")
    candidates = _answers(choices.examples)
    groups = _groups(choices)
    lists = {tuple(candidates[index] for index in own) for own in groups}
    if len(lists) > 1:
        return float(np.mean([1 / len(own) for own in groups]))
    counts = Counter(_last_answers(train))
    favourite = max(*lists.pop(), key=lambda answer: counts[answer])
    return float(np.mean([candidates[index] == favourite for index in choices.right.nonzero()[0]]))


_CONSTANTS: Mapping[str, Callable[[Examples, Examples, int], float]] = {
    "loss": _constant_loss,
    "token_accuracy": _constant_token_accuracy,
    "exact_match": _constant_exact_match,
    "choice_accuracy": _constant_choice_accuracy,
}


def _groups(choices: Choices) -> list[np.ndarray]:
    """The candidates of each example, by number."""
    starts = np.flatnonzero(np.diff(choices.row)) + 1
    return np.split(np.arange(len(choices.row)), starts)


def _targets(examples: Examples) -> np.ndarray:
    """The tokens of all targets, int32 [N]."""
    marked = zip(examples.token_ids, examples.targets or (), strict=True)
    return np.concatenate([ids[targets] for ids, targets in marked])


def _answers(examples: Examples) -> list[Answer]:
    """The tokens of each example's targets."""
    marked = zip(examples.token_ids, examples.targets or (), strict=True)
    return [tuple(ids[targets].tolist()) for ids, targets in marked]


def _last_answers(examples: Examples) -> list[Answer]:
    """The tokens of each example's last run of targets, with which it ends."""
    marked = zip(examples.token_ids, examples.targets or (), strict=True)
    return [tuple(ids[np.flatnonzero(~targets)[-1] + 1 :].tolist()) for ids, targets in marked]
