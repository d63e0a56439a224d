"""The table of operators' costs: every operator runs, and what it takes is told by lane."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import operator_cost


def test_every_operator_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operator_cost, "SHAPES", ((64, 96),))
    threads = torch.get_num_threads()
    file = tmp_path / "costs.json"
    arguments = ["--rows", "2", "--tokens", "3", "--lanes", "2", "--rounds", "1"]
    try:
        assert operator_cost.main([*arguments, "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads(file.read_text()).values()
    assert list(row) == ["frozen map", "lora r=8", *operator_cost.UNITS]
    assert all(value > 0.0 for value in row.values())
    assert "| 64 x 96 |" in capsys.readouterr().out


def test_units_have_as_many_parameters_as_lora() -> None:
    place = operator_cost.Place(0, "query", 64, 96)
    for name in operator_cost.UNITS:
        group = operator_cost._sparse(place, name)
        assert abs(float(group["density"]) * 64 * 96 - 8 * 160) < 1.0
        operator_cost._operator(group, place, lanes=2, rows=2, tokens=3)()
