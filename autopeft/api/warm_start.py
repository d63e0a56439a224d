"""Warm start: earlier studies of the same database, and what of them a new study tries first."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.api.study import bounds
from autopeft.configuration import TRAINING_KEYS, TRAINING_OPTIONS
from autopeft.errors import Fault, InputError
from autopeft.searchers import front as fronts
from autopeft.searchers.base import Problem
from autopeft.searchers.warm_start import Carried, Misfit, carried, chosen
from autopeft.study.definition import StudyDefinition
from autopeft.study.records import StudyRecord, TrialRecord
from autopeft.study.store import Store

SHARE = 1 / 3
"""Of the start, where the study says nothing: the rest shows what is different here."""


@dataclass(frozen=True)
class Source:
    """An earlier study.

    Attributes:
        key: Where the new study names it.
        record: What is stored of it.
        front: The front of its own trials; its baselines are those of the new study too.
    """

    key: str
    record: StudyRecord
    front: tuple[TrialRecord, ...]


def sources(definition: StudyDefinition, store: Store | None) -> list[Source]:
    """The studies of `search.warm_start`.

    Args:
        definition: The new study.
        store: The database, or None where it is not made yet.

    Raises:
        InputError: Studies that are not stored or have no front; all at once.
    """
    stored = {record.name: record for record in store.studies()} if store else {}
    found: list[Source] = []
    faults: list[Fault] = []
    for index, name in enumerate(definition.search.warm_start):
        where, key = f"study {definition.study.name}", f"search.warm_start.{index}"
        if store is None or name not in stored:
            near = difflib.get_close_matches(name, stored, 1)
            hint = f"did you mean {near[0]}?" if near else "see `autopeft studies`"
            allowed = ", ".join(stored) or "a stored study; there is none"
            faults.append(Fault(where, key, name, allowed, hint))
            continue
        record = stored[name]
        own = [trial for trial in store.trials(name) if trial.baseline is None]
        front = fronts.front(own, record.frame, bounds(record))
        if not front:
            given = f"{name}, whose search has completed no trial that learnt anything"
            faults.append(Fault(where, key, given, "a study with a front"))
        found.append(Source(key, record, tuple(front)))
    if faults:
        raise InputError(faults)
    return found


@dataclass(frozen=True)
class Ground:
    """What the new study stands on, to be compared with an earlier one.

    Attributes:
        definition: The new study.
        problem: What its searcher solves.
        space_hash: Of its space on its backbone.
        fingerprint: Of its backbone's weights.
    """

    definition: StudyDefinition
    problem: Problem
    space_hash: str
    fingerprint: str

    @property
    def varied(self) -> frozenset[str]:
        """The dimensions of its space."""
        return frozenset(dimension.name for dimension in self.problem.space.dimensions)

    @property
    def most(self) -> int:
        """How many configurations are taken over at most: they count as trials of the start."""
        search, trials = self.definition.search, self.definition.budget.trials
        given = search.warm_start_trials
        wanted = math.ceil(SHARE * search.initial) if given == "auto" else int(given)
        return max(0, min(wanted, trials - len(search.enqueue)))


def warm_start(
    ground: Ground, given: Sequence[Source], taken: frozenset[str]
) -> tuple[list[Carried], list[str]]:
    """What is tried first, and what is to be said of it.

    Args:
        ground: The new study.
        given: The earlier ones.
        taken: Hashes of configurations that are tried anyway.

    Returns:
        The configurations in their order, and one line per fact that users should know.

    Raises:
        InputError: A study of another kind of backbone, or one of which the new space holds
            nothing, with the differences; all at once.
    """
    found: list[list[Carried]] = []
    notes: list[str] = []
    faults: list[Fault] = []
    for source in given:
        if own := _backbone_faults(ground, source):
            faults += own
            continue
        here, misfits = carried(source.front, ground.problem, _fixed(source.record))
        if not here:
            faults += [_misfit_fault(ground, source, misfit) for misfit in misfits]
        found.append(here)
        notes += [*_differences(ground, source.record), *_left_out(source, misfits)]
    if faults:
        raise InputError(faults)
    first = chosen(found, ground.most, ground.problem, taken)
    names = ", ".join(source.record.name for source in given)
    if given:
        verb = "is" if len(first) == 1 else "are"
        notes.append(f"warm start: {len(first)} of {names} {verb} tried first")
    return first, notes


def _fixed(record: StudyRecord) -> dict[str, float]:
    """The training values that a stored study fixes where its space does not vary them."""
    training = {**TRAINING_OPTIONS, **record.definition["training"]}
    return {key: float(training[key]) for key in (*TRAINING_KEYS, *TRAINING_OPTIONS)}


def _backbone_faults(ground: Ground, source: Source) -> list[Fault]:
    anatomy, facts = ground.problem.anatomy, source.record.facts
    theirs = (str(facts["architecture"]), int(facts["n_layers"]))
    ours = (anatomy.architecture, len(anatomy.layers))
    if theirs == ours:
        return []
    return [
        Fault(
            f"study {ground.definition.study.name}",
            source.key,
            f"{source.record.name}, of a backbone {theirs[0]} with {theirs[1]} layers",
            f"a study of a backbone {ours[0]} with {ours[1]} layers",
            "layers and sites mean other things there",
        )
    ]


def _misfit_fault(ground: Ground, source: Source, misfit: Misfit) -> Fault:
    name = source.record.name
    return Fault(
        f"study {ground.definition.study.name}",
        source.key,
        f"{name}: trial {misfit.trial}: {'; '.join(misfit.differences)}",
        "a study of which this one's space holds some of the front exactly",
        f"search the space of {name}, widen this one, or leave {name} out",
    )


def _left_out(source: Source, misfits: Sequence[Misfit]) -> list[str]:
    return [
        f"warm start: trial {misfit.trial} of {source.record.name} is left out: "
        f"{'; '.join(misfit.differences)}"
        for misfit in misfits
    ]


def _differences(ground: Ground, record: StudyRecord) -> list[str]:
    """What is not the same there, though its configurations fit."""
    ours = [frame.name for frame in ground.problem.frame]
    theirs = [frame.name for frame in record.frame]
    notes = []
    if record.space_hash != ground.space_hash:
        notes.append("has another space; what this one's holds exactly is taken over")
    if record.fingerprints["backbone"] != ground.fingerprint:
        notes.append("has other weights of the same architecture")
    if theirs != ours:
        notes.append(f"has a front of {', '.join(theirs)}, this one of {', '.join(ours)}")
    fixed, own = _fixed(record), ground.definition.training
    notes += [
        f"trained with {key} {value:g}, this one with {getattr(own, key):g} where its space says "
        "nothing else"
        for key, value in fixed.items()
        if getattr(own, key) != value and f"training.{key}" not in ground.varied
    ]
    return [f"warm start: study {record.name} {note}" for note in notes]
