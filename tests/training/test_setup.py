import math
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.study.data_block import DataBlock
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.data.request import DataRequest
from autopeft.training.setup import (
    constant_quality,
    data_request,
    device_name,
    device_names,
    extra_metrics,
)


@pytest.mark.parametrize(
    ("block", "task", "wanted"),
    [
        ({"text": ["a", "b"], "label": "c"}, "regression",
         {"text": ("a", "b"), "label": "c", "task": "regression"}),
        ({"format": "prompt-completion", "prompt": "{a}\n", "choices": ["x", "y"]}, "causal-lm",
         {"format": "prompt-completion", "prompt": "{a}\n", "completion": "completion",
          "choices": ("x", "y"), "task": "causal-lm"}),
        ({"format": "messages", "choices": "o"}, "causal-lm",
         {"format": "messages", "messages": "messages", "choices": "o", "task": "causal-lm"}),
    ],
)  # fmt: skip
def test_the_request_says_what_the_block_says(
    block: dict[str, Any], task: Any, wanted: dict[str, Any]
) -> None:
    data = DataBlock.model_validate({"source": "d", "max_length": 7} | block)
    request = data_request(data, task=task, seed=3)
    assert request == DataRequest("d", max_length=7, seed=3, **wanted)


@pytest.mark.parametrize("task", ["sequence-classification", "regression"])
def test_labels_need_no_candidates(task: str) -> None:
    assert extra_metrics(task) == extra_metrics(task, choices=True)
    assert not {"token_accuracy", "exact_match", "choice_accuracy"} & set(extra_metrics(task))


def test_the_constant_predictor_of_either_kind() -> None:
    ids = (np.array([0, 1]), np.array([0, 2]))
    labels = np.array([0, 1])
    labelled = Examples(ids, labels)
    data = TaskData(labelled, labelled, ("a", "b"), "", ())
    assert constant_quality("loss", data) == pytest.approx(math.log(2))
    answered = Examples(ids, labels * 0, targets=(np.array([False, True]),) * 2)
    data = TaskData(answered, answered, (), "", ())
    # Each of 3 tokens gets one more: 1/5, 2/5, 2/5.
    assert constant_quality("loss", data, n_vocabulary=3) == pytest.approx(math.log(5 / 2))


@pytest.mark.parametrize(
    ("devices", "gpus", "named"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 1, ["cuda:0"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:2,cuda:0", 3, ["cuda:2", "cuda:0"]),
        ("cpu", 2, ["cpu"]),
        ("cpu,cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_every_device_that_is_meant_is_named(
    devices: str, gpus: int, named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_names(devices) == named
    assert device_name(devices).partition(":")[0] == named[0].partition(":")[0]
