"""`measure`: all scores of all linear sites in one streaming pass over training examples.

Where the sums of all sites need more memory than there is, the pass is repeated for one group of
sites after the other; the result is the same, bit for bit.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy, Site
from autopeft.backbone.importance import ImportanceMap, Key, SiteScores
from autopeft.errors import BackboneError, Fault
from autopeft.importance.head import SEEDS, TaskLoss
from autopeft.importance.identity import fingerprint
from autopeft.importance.scores import site_scores
from autopeft.importance.settings import MEASURED, ImportanceSettings
from autopeft.importance.sums import ARRAYS, SiteSums
from autopeft.importance.taps import tapped
from autopeft.training.batches import PaddedExamples, steps_per_epoch, training_order
from autopeft.training.loop import Trainer

MEMORY_BYTES = 1 << 30
"""Sums of a group of sites, where nobody says how much there is: a BERT-base fits at once."""


def measure(
    trainer: Trainer,
    settings: ImportanceSettings,
    *,
    data: str = "",
    memory_bytes: int = MEMORY_BYTES,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> ImportanceMap:
    """The importance map of a study's backbone and data.

    Rows are read in an order that depends on no study's seed (see `scoring_batches`), through the
    backbone as it is: eval mode, its own dtype, no lane. The same machine gives the same bits.

    Args:
        trainer: Backbone, tokenised data, task and batch size.
        settings: What to measure.
        data: The data's fingerprint.
        memory_bytes: For the sums of the sites of one pass, which has at least one.
        on_batch: Called after every batch with how many of how many are done.

    Raises:
        BackboneError: The loss or a gradient is not finite.
    """
    began = time.perf_counter()
    batches = scoring_batches(trainer, settings)
    anatomy = trainer.backbone.anatomy
    groups = site_groups(anatomy, memory_bytes, _dtype(trainer).itemsize)
    steps = itertools.count(1)
    measurement = _Measurement(
        trainer, settings, batches, lambda: on_batch(next(steps), len(groups) * len(batches))
    )
    scores: dict[str, dict[Key, SiteScores]] = {name: {} for name in MEASURED}
    with _repeatable(trainer.device):
        measurement.prepare()
        for group in groups:
            for key, own in measurement.scores(group):
                for name in MEASURED:
                    scores[name][key] = own[name]
    return ImportanceMap(
        scores,
        settings.block,
        sum(len(rows) for rows in batches),
        fingerprint(trainer, settings, data=data, rows=batches),
        {
            "backbone": trainer.backbone.name,
            "task": trainer.settings.task,
            "batches": str(len(batches)),
            "batch_size": str(trainer.settings.batch_size),
            "head": settings.head if trainer.recipe.steps else "none",
            **settings.asked(),
            "loss": f"{measurement.mean_loss:.6g}",
            "passes": str(len(groups)),
            "device": trainer.device.type,
            "seconds": f"{time.perf_counter() - began:.3f}",
        },
    )


def scoring_batches(trainer: Trainer, settings: ImportanceSettings) -> list[np.ndarray]:
    """Example numbers of the batches that are read.

    The first so many of a fixed permutation of the training rows (files are often sorted by
    class), then in batches as training forms them, by length. No study's seed takes part, so that
    all studies of a backbone and its data share one measurement.
    """
    examples = trainer.train
    rng = np.random.default_rng(SEEDS.seed("importance"))
    rows = rng.permutation(len(examples))[: settings.examples]
    size = trainer.settings.batch_size
    order = training_order(
        examples.lengths[rows],
        batch_size=size,
        total_steps=steps_per_epoch(len(rows), size),
        seeds=SEEDS,
    )
    return [rows[batch] for batch in order]


def site_groups(anatomy: Anatomy, memory_bytes: int, itemsize: int) -> list[list[Site]]:
    """Sites that are measured together, bottom up.

    Neighbours stay together: the backward pass ends at a group's lowest site.
    """
    groups: list[list[Site]] = [[]]
    arrays, room = ARRAYS + (not anatomy.packable), memory_bytes
    for site in _sites(anatomy):
        needs = arrays * itemsize * _size(site)
        if needs > room and groups[-1]:
            groups.append([])
            room = memory_bytes
        groups[-1].append(site)
        room -= needs
    return groups


class _Measurement:
    """One map in the making.

    Args:
        trainer: See `measure`.
        settings: See `measure`.
        batches: Example numbers.
        on_batch: Called after every batch.

    Attributes:
        mean_loss: Of the last pass.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: ImportanceSettings,
        batches: Sequence[np.ndarray],
        on_batch: Callable[[], None],
    ) -> None:
        anatomy = trainer.backbone.anatomy
        self._trainer, self._settings, self._batches = trainer, settings, batches
        self._on_batch = on_batch
        self._loss = TaskLoss(trainer.backbone, trainer.task)
        self._single = not anatomy.packable
        self._rows = 1 if self._single else trainer.settings.micro_batch_size
        shapes = anatomy.shapes()
        counts = settings.kept(list(shapes.values()))
        self._kept: dict[Key, int] = dict(zip(shapes, counts, strict=True))
        self.mean_loss = 0.0

    def prepare(self) -> None:
        """Fit the head, if it is to be."""
        parts = [part for rows in self._batches for part in self._parts(rows)]
        self._loss.prepare(self._settings.head, (self._examples.batch(rows) for rows in parts))

    def scores(self, sites: Sequence[Site]) -> Iterator[tuple[Key, dict[str, SiteScores]]]:
        """All scores of some sites, from one pass over all batches."""
        trainer = self._trainer
        sums = {
            site: SiteSums(site, trainer.device, _dtype(trainer), single=self._single)
            for site in sites
        }
        self._read(sums)
        for site in sites:
            own = sums.pop(site)
            _check_finite(site, own.gradient)
            key = (site.layer, site.role)
            yield (
                key,
                site_scores(
                    own,
                    trainer.backbone.weight(site.layer, site.role),
                    total_weight=self._weight,
                    examples=sum(len(rows) for rows in self._batches),
                    block=self._settings.block,
                    keep=self._kept[key],
                ),
            )

    def _read(self, sums: dict[Site, SiteSums]) -> None:
        """Add all batches to the sums."""
        loss, self._weight = 0.0, 0
        for rows in self._batches:
            loss += sum(self._pass(sums, part) for part in self._parts(rows))
            weight = self._trainer.task.weight(self._examples, rows)
            for own in sums.values():
                own.end_batch(weight)
            self._weight += weight
            self._on_batch()
        self.mean_loss = loss / self._weight

    def _pass(self, sums: dict[Site, SiteSums], rows: np.ndarray) -> float:
        """One forward and backward pass; the summed loss."""
        batch = self._examples.batch(rows)

        def collect(site: Site, x: Tensor, grad: Tensor) -> None:
            sums[site].add(x, grad, len(batch))

        def notice(site: Site, x: Tensor) -> None:
            sums[site].notice(x, batch.mask)

        model = self._trainer.backbone.model
        with torch.enable_grad(), tapped(model, list(sums), collect=collect, notice=notice):
            loss = self._loss.summed(batch)
            torch.autograd.backward(loss)
        for own in sums.values():
            own.end_pass()
        return float(loss.detach())

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """A batch's rows as they go through the backbone."""
        return [rows[start : start + self._rows] for start in range(0, len(rows), self._rows)]

    @property
    def _examples(self) -> PaddedExamples:
        return self._trainer.train


def _check_finite(site: Site, gradient: Tensor) -> None:
    if not bool(torch.isfinite(gradient).all()):
        given = f"gradients of layer {site.layer}, {site.role} that are not finite"
        hint = "load the model in float32: model.dtype"
        raise BackboneError(Fault("importance", "", given, "finite gradients", hint))


def _sites(anatomy: Anatomy) -> list[Site]:
    """All linear sites, bottom up."""
    return [site for layer in anatomy.layers for site in layer.sites.values()]


def _size(site: Site) -> int:
    return site.in_features * site.out_features


def _dtype(trainer: Trainer) -> torch.dtype:
    """Of the sums: float32, or what the backbone has beyond it."""
    own = next(trainer.backbone.model.parameters()).dtype
    return torch.float64 if own == torch.float64 else torch.float32


def _repeatable(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, the attention kernel whose backward pass adds up in a fixed order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH])
    return context
