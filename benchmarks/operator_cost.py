"""What the operators of sparse weights cost beside LoRA's and the frozen map's own products.

    python -m benchmarks.operator_cost [--rows 32] [--tokens 14] [--lanes 4] [--rounds 9]

Milliseconds of CPU time per lane, forward and backward, of one operator alone on random inputs,
for the shapes of MiniLM's maps; the frozen map's are its forward pass and the gradient of its
input.
Units are chosen by chance and have as many parameters as LoRA of rank 8. Operators take turns;
figures are medians over the rounds, with torch on one thread.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from autopeft.configuration import Group
from autopeft.methods import registry
from autopeft.methods.base import Start
from autopeft.methods.lane_operator import Call, Place, Stack

SHAPES = ((384, 384), (384, 1536), (1536, 384))
RANK = 8
UNITS: Mapping[str, Mapping[str, int | str]] = {
    "columns": {"granularity": "output"},
    "rows": {"granularity": "input", "noise": 0},
    "rows, noise": {"granularity": "input", "noise": 4},
    "blocks 32": {"granularity": "block", "block": 32},
    "blocks 16": {"granularity": "block", "block": 16},
    "weights": {"granularity": "weight"},
}
REPEATS = 5
"""Passes of a round."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=14)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    for d_in, d_out in SHAPES:
        place = Place(0, "query", d_in, d_out)
        passes = {"frozen map": _frozen(place, given.lanes, given.rows, given.tokens)}
        groups = {"lora r=8": _lora()} | {name: _sparse(place, name) for name in UNITS}
        for name, group in groups.items():
            passes[name] = _operator(group, place, given.lanes, given.rows, given.tokens)
        found[f"{d_in} x {d_out}"] = _timed(passes, given.lanes, given.rounds)
    names = next(iter(found.values())).keys()
    print(f"| map | {' | '.join(names)} |")
    print(f"| --- |{' --- |' * len(names)}")
    for shape, row in found.items():
        print(f"| {shape} | {' | '.join(f'{value:.2g}' for value in row.values())} |")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _lora() -> Group:
    return Group.of("lora", [0], ["query"], rank=RANK, alpha=16.0, dropout=0.0)


def _sparse(place: Place, name: str) -> Group:
    density = RANK * (place.d_in + place.d_out) / (place.d_in * place.d_out)
    settings = dict(UNITS[name])
    return Group.of(
        "sparse", [0], ["query"], density=density, score="random", smallest=False, **settings
    )


def _uniform(name: str, shape: object, *, per_row: bool = True) -> Tensor:
    return torch.rand(*shape)  # type: ignore[misc]


def _operator(
    group: Group, place: Place, lanes: int, rows: int, tokens: int
) -> Callable[[], None]:
    """A pass of the stacked operator of so many lanes."""
    method = registry[group.method]
    weight = torch.randn(place.d_in, place.d_out)
    tensors = [
        method.initial(
            group,
            place,
            Start(
                lambda name, lane=lane: torch.Generator().manual_seed(lane),
                lambda layer, role: weight,
            ),
        )
        for lane in range(lanes)
    ]
    operator = method.operator(Stack("bench", place, range(lanes), [group] * lanes, tensors))
    operator.float()
    x = torch.randn(lanes, rows, tokens, place.d_in, requires_grad=True)
    y = torch.randn(lanes, rows, tokens, place.d_out)
    call = Call(training=True, uniform=_uniform)

    def run() -> None:
        operator.delta(x, y, call).backward(y)

    return run


def _frozen(place: Place, lanes: int, rows: int, tokens: int) -> Callable[[], None]:
    """The frozen map on the same rows."""
    weight = torch.randn(place.d_out, place.d_in)
    x = torch.randn(lanes * rows, tokens, place.d_in, requires_grad=True)
    y = torch.randn(lanes * rows, tokens, place.d_out)

    def run() -> None:
        torch.nn.functional.linear(x, weight).backward(y)

    return run


def _timed(passes: Mapping[str, Callable[[], None]], lanes: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time per lane, by name; the first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            began = time.process_time()
            for _ in range(REPEATS):
                run()
            spent[name].append((time.process_time() - began) / REPEATS / lanes * 1e3)
    return {name: median(own[1:]) for name, own in spent.items()}


if __name__ == "__main__":
    raise SystemExit(main())
