"""A study as people see it: what `autopeft.search` and `autopeft.load_study` give.

Each call tells how the study is now, while the search runs as when it has ended.
Nothing here imports torch, and what weighs trials against each other (`autopeft.searchers`, with
NumPy) is imported by the calls that do: progress and single trials are told without.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.api.status import status
from autopeft.errors import Fault, InputError
from autopeft.study.confirmation import Confirmation, Opening
from autopeft.study.placement import PlacementMap, placed, placement_map
from autopeft.study.records import (
    Measurement,
    ObjectiveFrame,
    Snapshot,
    StudyRecord,
    TrialRecord,
    TrialState,
)
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.backbone.importance import ImportanceMap
    from autopeft.searchers.explain.importances import Importances
    from autopeft.searchers.explain.predictions import Predictions
    from autopeft.searchers.front import Bound
    from autopeft.study.progress import Listener, Stopper


class Study:
    """One study, read from its store.

    Args:
        store: Where it is kept.
        name: Its name.
        output_dir: Where its artifacts lie.
        storage: The store's URL, for what writes; without it, where the environment says.

    Raises:
        NotFoundError: No study of that name (from any call).
        StorageError: The database cannot be read (from any call).
    """

    def __init__(
        self, store: Store, name: str, *, output_dir: Path, storage: str | None = None
    ) -> None:
        self._store, self.name, self.output_dir = store, name, output_dir
        self._read: tuple[datetime, list[TrialRecord]] | None = None
        self._storage = storage

    def __repr__(self) -> str:
        return f"Study({self.name!r})"

    @property
    def record(self) -> StudyRecord:
        """The stored record, as it is now."""
        return self._store.study(self.name)

    @property
    def frames(self) -> tuple[ObjectiveFrame, ...]:
        """The objectives, quality first."""
        return self.record.frame

    def status(self) -> dict[str, Any]:
        """Progress, in the binding JSON shape of `autopeft status`."""
        return status(self._store.summary(self.name))

    def trials(self) -> list[TrialRecord]:
        """All trials by number; read anew when the study has changed since the last time."""
        return list(self._trials(self.record.updated_at))

    def _trials(self, changed: datetime) -> list[TrialRecord]:
        if self._read is None or self._read[0] != changed:
            self._read = (changed, self._store.trials(self.name))
        return self._read[1]

    def trial(self, number: int) -> TrialRecord:
        """One trial."""
        return self._store.trial(self.name, number)

    def curve(self, number: int) -> list[Measurement]:
        """A trial's learning curve."""
        return self._store.curve(self.name, number)

    def attempts(self, number: int) -> list[dict[str, Any]]:
        """How often a trial was started, and what became of it."""
        return self._store.attempts(self.name, number)

    def confirmation_attempts(self, number: int) -> list[dict[str, Any]]:
        """The same of a trial's runs with other seeds; each names its `seed`."""
        return self._store.confirmation_attempts(self.name, number)

    def orphans(self) -> list[dict[str, Any]]:
        """What coordinators found that others had replaced: kept apart, never counted."""
        return self._store.orphans(self.name)

    def snapshots(self) -> list[Snapshot]:
        """The front and its hypervolume after every tell."""
        return self._store.snapshots(self.name)

    def placement(self, number: int) -> PlacementMap:
        """Where a trial's methods sit, layers x sites, under its sparsity rule."""
        return placement_map(placed(self.trial(number)), int(self.record.facts["n_layers"]))

    def front(self) -> list[TrialRecord]:
        """The Pareto front: completed full-budget trials within the caps, from cheap to good."""
        from autopeft.searchers import front as fronts

        record = self.record
        return fronts.front(self._trials(record.updated_at), record.frame, bounds(record))

    def on_front(self, number: int) -> bool:
        """Whether a trial is on the front; reads no trial where the newest snapshot holds."""
        last, counts = self._store.last_snapshot(self.name), self._store.counts(self.name)
        if last is not None and last.trials == sum(counts[s] for s in TrialState if s.final):
            return number in last.front
        return number in {member.number for member in self.front()}

    def pick(self, how: str = "knee") -> tuple[TrialRecord, str]:
        """One trial of the front, and why.

        Args:
            how: `knee`, `best` or `smallest`.
        """
        from autopeft.searchers import front as fronts

        if how not in fronts.PICKS:
            raise InputError(Fault("--pick", "", repr(how), ", ".join(fronts.PICKS)))
        return fronts.PICKS[how](self.front(), self.frames)

    def pick_within(self, within: str, prefer: str) -> tuple[TrialRecord, str]:
        """The trial with the least `prefer` among those within a margin of the best quality."""
        from autopeft.searchers import front as fronts

        return fronts.pick_within(self.front(), self.frames, within=within, prefer=prefer)

    def best_baseline(self) -> TrialRecord | None:
        """The completed baseline of the highest quality, or None."""
        from autopeft.searchers import front as fronts

        return fronts.best_baseline(self.trials(), self.frames)

    def verdict(self) -> str:
        """One honest sentence comparing the front with the best baseline."""
        from autopeft.searchers import front as fronts

        found = self.confirmation()
        compare = partial(fronts.compare_with_baseline, self.front(), self.trials(), self.frames)
        if not found.trials:
            return compare()
        from autopeft.searchers import confirmed

        return compare(beyond=partial(confirmed.verdict, found))

    def confirmation(self) -> Confirmation:
        """What other seeds than the search's say of its trials, so far."""
        runs, openings = self._store.confirmations(self.name), self.openings()
        if not runs:
            return Confirmation(self.frames[0], None, {}, tuple(openings))
        from autopeft.searchers import confirmed

        return confirmed.confirmation(runs, openings, self.trials(), self.frames)

    def openings(self) -> list[Opening]:
        """Every opening of the test split, oldest first; [] while it is locked."""
        return self._store.openings(self.name)

    def confirm(
        self,
        trials: Sequence[int] = (),
        *,
        top: int | None = None,
        seeds: int = 5,
        open_test: bool = False,
        again: bool = False,
        overrides: Sequence[str] = (),
        listener: "Listener | None" = None,
        stopper: "Stopper | None" = None,
    ) -> Confirmation:
        """Train chosen trials and the best baseline with several seeds; see `autopeft.confirm`."""
        from autopeft.api.confirming import confirm

        found = confirm(
            self.name,
            trials=trials,
            top=top,
            seeds=seeds,
            open_test=open_test,
            again=again,
            overrides=overrides,
            storage=self._storage,
            output_dir=self.output_dir,
            listener=listener,
            stopper=stopper,
        )
        return found.confirmation()

    def importance_maps(self) -> "list[ImportanceMap]":
        """How much every site matters for the study's data, newest measurement first.

        Of channels, sites and layers; blocks and single weights are left out.
        """
        from autopeft.importance.stored import from_record

        given = self.record.fingerprints
        found = self._store.importances(backbone=given["backbone"], data=given["data"])
        return [from_record(record) for record in found]

    @property
    def method_sources(self) -> dict[str, str]:
        """The paper or code that each method is from, by name.

        As the study was created with; {} of one that an earlier release has created.
        """
        return dict(self.record.facts.get("method_sources", {}))

    def trial_sources(self, record: TrialRecord) -> dict[str, str]:
        """The same of a trial's own methods."""
        known = self.method_sources
        return {name: known[name] for name in record.configuration.methods if name in known}

    def importances(self) -> "dict[str, Importances]":
        """Which choices of the search mattered, by target: `quality`, then `hypervolume`.

        Takes about a second; see `autopeft.searchers.explain.importances` for what is computed.
        """
        from autopeft.searchers.explain.importances import importances
        from autopeft.searchers.explain.outcomes import outcomes

        record = self.record
        metric = record.frame[0].name
        at_rungs = {
            float(share): self._store.values_at(self.name, step=int(step), metric=metric)
            for share, step in record.facts.get("rung_steps", {}).items()
        }
        return importances(outcomes(self.trials(), record.frame, at_rungs), metric)

    def predictions(self) -> "list[Predictions]":
        """What the searcher predicted of its proposals beside what was measured, by metric."""
        from autopeft.searchers.explain.predictions import predictions

        return predictions(self.trials())

    def export(
        self,
        output: Path | None = None,
        *,
        trial: int | None = None,
        pick: str = "knee",
        format: str = "yaml",  # noqa: A002
    ) -> str:
        """One configuration in a format that trains elsewhere.

        Args:
            output: File (yaml, axolotl) or folder (peft, llama-factory) to write, or None to
                write nothing.
            trial: A trial's number, or None to pick from the front.
            pick: `knee`, `best` or `smallest`, where no trial is given.
            format: `yaml`, `peft`, `axolotl` or `llama-factory`.

        Returns:
            The text of the file; for peft, that of `adapter_config.json`; for llama-factory that
            of its training file, or of both files where nothing is written.

        Raises:
            ExportError: The format cannot carry the configuration.
        """
        from autopeft.api.exporting import export_trial

        chosen = self.trial(trial) if trial is not None else self.pick(pick)[0]
        how = f"trial {trial}" if trial is not None else pick
        return export_trial(
            self.record,
            chosen,
            how=how,
            format=format,
            output=output,
            importance=lambda: self._scored(self.record),
            confirmation=self.confirmation(),
        )

    def _scored(self, record: StudyRecord) -> "ImportanceMap":
        """The stored map that its trials were placed by, with the study's random control."""
        from autopeft.api.measuring import stored_map
        from autopeft.importance.chance import with_random
        from autopeft.study.definition import parse_definition

        definition = parse_definition(record.definition, where=f"study {self.name}", base=None)
        found = stored_map(definition, str(record.fingerprints["data"]), self._store)
        return with_random(found, definition.study.seed)

    def export_study(self, output: str, *, format: str = "optuna") -> dict[str, Any]:  # noqa: A002
        """The whole study in a format that other tools read, as it is now.

        Args:
            output: The URL of a database of Optuna's, or the path of a journal file; made where
                it is missing. Relative paths start at the working directory.
            format: `optuna`.

        Returns:
            `{"study", "output", "trials": {state of Optuna's: n}}`; without passwords.

        Raises:
            ExportError: There is a study of that name, the place is another program's, or the
                space can no longer be read as it was.
            StorageError: The place cannot be reached.
        """
        from autopeft.api.study_export import export_study

        return export_study(self, output, format=format)


def bounds(record: StudyRecord) -> "list[Bound]":
    """Caps and floors of a study's objectives and constraints."""
    from autopeft.searchers.front import Bound

    entries = [*record.definition["objectives"], *record.definition.get("constraints", ())]
    return [
        Bound(entry["metric"], cap=entry.get("cap"), floor=entry.get("floor"))
        for entry in entries
        if entry.get("cap") is not None or entry.get("floor") is not None
    ]
