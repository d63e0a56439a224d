"""A study as people see it: what `autopeft.search` and `autopeft.load_study` give.

Each call tells how the study is now, while the search runs as when it has ended.
Nothing here imports torch.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import Fault, InputError
from autopeft.searchers import confirmed
from autopeft.searchers import front as fronts
from autopeft.searchers.front import Bound
from autopeft.space.quantities import parse_duration_s
from autopeft.study.confirmation import (
    FIRST_REPLICATE,
    Confirmation,
    ConfirmationRun,
    Opening,
)
from autopeft.study.placement import PlacementMap, placed, placement_map
from autopeft.study.records import (
    Measurement,
    ObjectiveFrame,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
    TrialState,
)
from autopeft.study.store import Store
from autopeft.study.summary import StudySummary

if TYPE_CHECKING:
    from autopeft.backbone.importance import ImportanceMap
    from autopeft.searchers.explain.importances import Importances
    from autopeft.searchers.explain.predictions import Predictions
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
        changed = self.record.updated_at
        if self._read is None or self._read[0] != changed:
            self._read = (changed, self._store.trials(self.name))
        return list(self._read[1])

    def trial(self, number: int) -> TrialRecord:
        """One trial."""
        return self._store.trial(self.name, number)

    def curve(self, number: int) -> list[Measurement]:
        """A trial's learning curve."""
        return self._store.curve(self.name, number)

    def attempts(self, number: int) -> list[dict[str, Any]]:
        """How often a trial was started, and what became of it."""
        return self._store.attempts(self.name, number)

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
        record = self.record
        return fronts.front(self.trials(), record.frame, bounds(record))

    def pick(self, how: str = "knee") -> tuple[TrialRecord, str]:
        """One trial of the front, and why.

        Args:
            how: `knee`, `best` or `smallest`.
        """
        if how not in fronts.PICKS:
            raise InputError(Fault("--pick", "", repr(how), ", ".join(fronts.PICKS)))
        return fronts.PICKS[how](self.front(), self.frames)

    def pick_within(self, within: str, prefer: str) -> tuple[TrialRecord, str]:
        """The trial with the least `prefer` among those within a margin of the best quality."""
        return fronts.pick_within(self.front(), self.frames, within=within, prefer=prefer)

    def best_baseline(self) -> TrialRecord | None:
        """The completed baseline of the highest quality, or None."""
        return fronts.best_baseline(self.trials(), self.frames)

    def verdict(self) -> str:
        """One honest sentence comparing the front with the best baseline."""
        found = self.confirmation()
        return fronts.compare_with_baseline(
            self.front(),
            self.trials(),
            self.frames,
            beyond=lambda number: confirmed.verdict(found, number),
        )

    def confirmation(self) -> Confirmation:
        """What other seeds than the search's say of its trials, so far."""
        return confirmed.confirmation(
            self._store.confirmations(self.name), self.openings(), self.trials(), self.frames
        )

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

    def importances(self) -> "dict[str, Importances]":
        """Which choices of the search mattered, by target: `quality`, then `hypervolume`.

        Takes some seconds; see `autopeft.searchers.explain.importances` for what is computed.
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
            output: File (yaml) or folder (peft) to write, or None to write nothing.
            trial: A trial's number, or None to pick from the front.
            pick: `knee`, `best` or `smallest`, where no trial is given.
            format: `yaml` or `peft`.

        Returns:
            The text of the file; for peft, that of `adapter_config.json`.

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


def bounds(record: StudyRecord) -> list[Bound]:
    """Caps and floors of a study's objectives and constraints."""
    entries = [*record.definition["objectives"], *record.definition.get("constraints", ())]
    return [
        Bound(entry["metric"], cap=entry.get("cap"), floor=entry.get("floor"))
        for entry in entries
        if entry.get("cap") is not None or entry.get("floor") is not None
    ]


def status(summary: StudySummary) -> dict[str, Any]:
    """A study's progress, in the binding JSON shape."""
    record, counts, snapshot = summary.record, summary.counts, summary.last
    budget = dict(record.definition["budget"])
    baselines = int(record.facts.get("n_baselines", 0))
    begun = max(0, sum(counts.values()) - baselines)
    done = sum(counts[state] for state in TrialState if state.final)
    trials_left = None if budget.get("trials") is None else max(0, budget["trials"] - begun)
    open_trials = counts[TrialState.RUNNING] + counts[TrialState.WAITING]
    wall = float(record.spent.get("wall_seconds", 0.0))
    text = budget.get("wall_clock")
    limit = None if text is None else parse_duration_s(text)
    per_trial = wall / done if done else None
    remaining = None if trials_left is None else trials_left + open_trials
    finished = record.state is StudyState.FINISHED
    return {
        "study": record.name,
        "state": record.state.value,
        "trials": {state.value: counts[state] for state in TrialState},
        "hypervolume": snapshot.hypervolume if snapshot else 0.0,
        "reference_point": {frame.name: frame.worst for frame in record.frame},
        "front_size": len(snapshot.front) if snapshot else 0,
        "budget": budget,
        "left": {
            "trials": trials_left,
            "wall_clock": None if limit is None else max(0.0, limit - wall),
            "gpu_hours": _hours_left(budget.get("gpu_hours"), record),
            "optimizer_steps": _steps_left(budget.get("optimizer_steps"), record),
        },
        "eta_seconds": 0.0
        if finished
        else (None if per_trial is None or remaining is None else per_trial * remaining),
        "spent": {
            "trials": begun,
            "train_seconds": record.spent.get("train_seconds", 0.0),
            "optimizer_steps": int(record.spent.get("optimizer_steps", 0)),
            "suggest_seconds": record.spent.get("suggest_seconds", 0.0),
            "wall_seconds": wall,
            "device_seconds": record.device_seconds,
        },
        "failures": dict(summary.failures),
        "attempts": dict(summary.attempts),
        "orphans": summary.orphans,
        "ended": record.facts.get("ended"),
        "held": summary.holder is not None,
        "confirmed": _confirmed(summary.confirmations),
        "test": _test(record, summary.openings),
        "objectives": [frame.name for frame in record.frame],
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def _hours_left(budget: float | None, record: StudyRecord) -> float | None:
    """Device hours left; None without such a budget."""
    if budget is None:
        return None
    return max(0.0, float(budget) - record.device_seconds / 3600.0)


def _steps_left(budget: int | None, record: StudyRecord) -> int | None:
    """Optimizer steps left; None without such a budget."""
    return None if budget is None else max(0, budget - int(record.spent.get("optimizer_steps", 0)))


def _confirmed(runs: Sequence[ConfirmationRun]) -> dict[str, Any]:
    """Which trials other seeds have confirmed, with how many results of how many runs."""
    return {
        "trials": sorted({run.trial for run in runs}),
        "seeds": len({run.replicate for run in runs if run.replicate >= FIRST_REPLICATE}),
        "runs": len(runs),
        "ended": sum(run.ended for run in runs),
    }


def _test(record: StudyRecord, openings: Sequence[Opening]) -> dict[str, Any]:
    """Whether the test split is locked, and who opened it."""
    there = record.definition.get("data", {}).get("splits", {}).get("test") is not None
    state = "opened" if openings else "locked" if there else "none"
    return {"state": state, "openings": [opening.to_dict() for opening in openings]}
