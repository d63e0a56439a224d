"""Finding a study by name and a trial by number, and saying which there are where none is."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from autopeft.errors import Fault, NotFoundError
from storage.models import StudyRow, TrialRow

_NAMED = 10
"""How many studies an error names."""


@dataclass(frozen=True)
class StudyKey:
    """What a trial needs to know of its study.

    Attributes:
        id: The study's row.
        name: Its name.
        seed: Its seed.
    """

    id: int
    name: str
    seed: int


def find_study(session: Session, name: str) -> StudyKey:
    """The study's key; NotFoundError where there is none of that name."""
    query = select(StudyRow.id, StudyRow.name, StudyRow.seed).where(StudyRow.name == name)
    found = session.execute(query).one_or_none()
    if found is None:
        raise no_study(session, name)
    return StudyKey(*found)


def find_trial(session: Session, study: StudyKey, number: int) -> TrialRow:
    """The trial's row; NotFoundError where the study has none of that number."""
    query = select(TrialRow).where(TrialRow.study_id == study.id, TrialRow.number == number)
    found = session.scalars(query).one_or_none()
    if found is None:
        raise no_trial(session, study, [number])
    return found


def next_number(session: Session, study: StudyKey) -> int:
    """The number of the study's next trial."""
    query = select(func.max(TrialRow.number)).where(TrialRow.study_id == study.id)
    last = session.scalar(query)
    return 0 if last is None else last + 1


def no_study(session: Session, name: str) -> NotFoundError:
    """The error for a study that does not exist: it lists those that do, nearest first."""
    names = session.scalars(select(StudyRow.name)).all()
    hint = "" if names else "there is no study yet; `autopeft search` creates one"
    return NotFoundError(Fault("storage", "study", name, _listed(name, names), hint))


def no_trial(session: Session, study: StudyKey, numbers: Sequence[int]) -> NotFoundError:
    """The error for trials that do not exist."""
    end = next_number(session, study)
    allowed = f"0 to {end - 1}" if end else "none: the study has no trials yet"
    given = ", ".join(str(number) for number in numbers)
    return NotFoundError(Fault(f"study {study.name}", "trial", given, allowed))


def _listed(name: str, names: Sequence[str]) -> str:
    nearest = sorted(names, key=lambda other: (-_likeness(name, other), other))
    more = len(nearest) - _NAMED
    return ", ".join(nearest[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name.lower(), other.lower()).ratio()
