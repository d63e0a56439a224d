"""The random score: the control that every other score is compared with.

Every weight's score is uniform in [0, 1), drawn by the site's place from a seed alone, and summed
into units as any other score: so it needs no data and is never stored.
"""

import hashlib
from dataclasses import replace

import torch

from autopeft.backbone.importance import ImportanceMap, Key, SiteScores
from autopeft.importance.scores import reduced
from autopeft.importance.settings import RANDOM, ImportanceSettings
from autopeft.training.lanes.seeds import Seeds


def with_random(
    found: ImportanceMap, seed: int, settings: ImportanceSettings | None = None
) -> ImportanceMap:
    """The map with the random score of a seed beside what was measured.

    Args:
        found: Measured, of whatever parts.
        seed: The study's.
        settings: Those of the measurement.
    """
    settings = settings or ImportanceSettings()
    shapes = {
        key: (len(own.inputs), len(own.outputs))
        for key, own in next(iter(found.scores.values())).items()
    }
    counts = settings.kept(list(shapes.values()))
    scores = {
        key: _site(key, shape, seed, found.block, count)
        for (key, shape), count in zip(shapes.items(), counts, strict=True)
    }
    digest = hashlib.sha256(f"{found.fingerprint} random {seed}".encode()).hexdigest()
    return replace(found, scores={**found.scores, RANDOM: scores}, fingerprint=digest)


def _site(key: Key, shape: tuple[int, int], seed: int, block: int, keep: int) -> SiteScores:
    layer, role = key
    generator = Seeds(seed).generator("importance", f"{layer}.{role}")
    return reduced(torch.rand(shape, generator=generator), block, keep)
