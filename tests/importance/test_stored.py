"""What a store keeps of a map."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from autopeft.backbone.importance import ImportanceMap
from autopeft.errors import StorageError
from autopeft.importance.chance import with_random
from autopeft.importance.measuring import measure
from autopeft.importance.settings import MEASURED, SCORES, ImportanceSettings
from autopeft.importance.stored import from_record, to_record
from autopeft.study.records import ImportanceRecord
from autopeft.training.loop import Trainer

MakeTrainer = Callable[..., Trainer]
SETTINGS = ImportanceSettings(head="initial", block=12)


@pytest.fixture
def found(make_trainer: MakeTrainer) -> ImportanceMap:
    """Of a fused, grouped-query decoder: sites of many shapes, blocks that do not fit."""
    return measure(make_trainer("phi3", "causal-lm", dtype=torch.float32), SETTINGS)


def record(found: ImportanceMap) -> ImportanceRecord:
    return to_record(found, SETTINGS, backbone="b", data="d", batch_size=3)


def same(one: ImportanceMap, other: ImportanceMap, *fields: str) -> None:
    for name in MEASURED:
        assert list(one.of(name)) == list(other.of(name))
        for key, own in one.of(name).items():
            for field in fields:
                mine, theirs = getattr(own, field), getattr(other.of(name)[key], field)
                np.testing.assert_array_equal(mine, theirs, err_msg=f"{name} {key} {field}")
                assert mine.dtype == theirs.dtype


def test_a_map_comes_back_bit_for_bit(found: ImportanceMap) -> None:
    again = from_record(record(found))
    same(found, again, "inputs", "outputs", "blocks", "weights", "values")
    assert again.fine
    for field in ("block", "examples", "fingerprint", "facts"):
        assert getattr(again, field) == getattr(found, field)


def test_the_same_map_is_the_same_bytes(found: ImportanceMap) -> None:
    assert record(found) == record(found)


def test_a_map_that_is_listed_has_its_channels_alone(found: ImportanceMap) -> None:
    again = from_record(replace(record(found), fine=None))
    assert not again.fine
    same(found, again, "inputs", "outputs")
    assert again.layer_ranking("fisher") == found.layer_ranking("fisher")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nonsense", None])
def test_damaged_arrays_are_an_error_that_says_what_to_do(
    found: ImportanceMap, damage: bytes | None
) -> None:
    kept = record(found)
    units = kept.units[:-200] + bytes(200) if damage is None else damage
    with pytest.raises(StorageError, match="--again"):
        from_record(replace(kept, units=units))


def test_the_random_score_is_a_function_of_the_seed_alone(found: ImportanceMap) -> None:
    one, again, other = (with_random(found, seed, SETTINGS) for seed in (1, 1, 2))
    assert set(one.scores) == set(SCORES)
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint
    key = (1, "down")
    first = one.of("random")[key]
    np.testing.assert_array_equal(first.weights, again.of("random")[key].weights)
    assert first.weights.tolist() != other.of("random")[key].weights.tolist()
    n = len(first.inputs) * len(first.outputs)
    assert len(first.weights) == len(found.of("fisher")[key].weights)
    assert first.total / n == pytest.approx(0.5, abs=0.05)
    assert first.values[0] > 0.9
    assert one.of("fisher") is found.of("fisher")


def test_scores_of_heads_are_sums_over_their_channels(
    found: ImportanceMap, make_trainer: MakeTrainer
) -> None:
    own = found.of("fisher")
    dim = make_trainer("phi3", "causal-lm").backbone.anatomy.head_dim
    query, output = own[0, "query"], own[0, "output"]
    assert query.output_heads(dim).shape == (4,)
    assert own[0, "key"].output_heads(dim).shape == (2,)
    np.testing.assert_allclose(
        query.output_heads(dim)[1], query.outputs[dim : 2 * dim].sum(), rtol=1e-6
    )
    np.testing.assert_allclose(output.input_heads(dim)[0], output.inputs[:dim].sum(), rtol=1e-6)
