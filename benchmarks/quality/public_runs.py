"""The public PEFT runs of huggingface/peft's `method_comparison`, read where they lie.

63 runs of Llama-3.2-3B on MetaMathQA, each measured 20 times on 50 validation examples and once,
at the end, on the 1,319 test examples of GSM8K. No example is trained on twice, so a run's
training loss between two measurements is one on unseen examples, the same for all runs: it stands
for the validation loss, which was not recorded.
"""

import json
import math
from pathlib import Path

import numpy as np

from benchmarks.quality.errors import NotHereError
from benchmarks.quality.rung_tables import RungTable

FILE = Path("peft_comparison") / "metamathqa.jsonl"

N_VALIDATION = 50
"""Examples of a run's validation accuracy: every value is a multiple of 0.02."""

LARGEST = 1e10
"""Trainable parameters of cost utility 0: beyond full fine-tuning of the model."""

NOISE = 0.0086
"""Median standard deviation of a test accuracy when a run is repeated, as its README has it."""


def public_runs(data: Path) -> RungTable:
    """Curves of validation accuracy and loss, costs in parameters, final test accuracy.

    Args:
        data: Folder of all data sets.

    Raises:
        NotHereError: The runs are not there.
    """
    path = data / FILE
    if not path.is_file():
        raise NotHereError(f"{path} is not there")
    runs = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    curves = [run["curve"] for run in runs]
    total = curves[0][-1]["step"]
    params = np.log10([float(run["num_trainable_params"]) for run in runs])
    top = math.log10(LARGEST)
    return RungTable(
        name="public runs",
        shares=tuple(point["step"] / total for point in curves[0]),
        quality=np.array([[point["valid accuracy"] for point in curve] for curve in curves]),
        loss=np.array([[point["train loss"] for point in curve] for curve in curves]),
        costs=((top - params) / (top - params.min()))[:, None],
        final=np.array([float(np.mean(run["test_accuracy"])) for run in runs]),
        baselines=frozenset(),
        n_examples=N_VALIDATION,
        noise=NOISE,
    )
