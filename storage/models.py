"""The tables, as SQLAlchemy models: studies, trials and what hangs on them, confirmations.

A study owns everything below it (ON DELETE CASCADE); importance maps belong to no study. The lease
lies in the study's own row, so that one UPDATE can take it and every write can check it. Nothing
loads lazily: what a query needs, it asks for. `storage/migrations` makes these tables; a test
keeps the two in step.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from storage.columns import PlainJson, UtcDateTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Every constraint has a name, so that a later migration can drop it on either database."""


class Base(DeclarativeBase):
    """The root of the models."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        float: Double(),
        datetime: UtcDateTime(),
        dict[str, Any]: PlainJson(),
        list[Any]: PlainJson(),
    }


class StudyRow(Base):
    """One study, with its lease."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    definition: Mapped[dict[str, Any]]
    space_hash: Mapped[str]
    frame: Mapped[list[Any]]
    fingerprints: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    spent: Mapped[dict[str, Any]]
    stop_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    # The fencing token counts claims and never falls; the lease is free where `until_s` is null.
    lease_token: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_until_s: Mapped[float | None]
    lease_host: Mapped[str | None]
    lease_pid: Mapped[int | None] = mapped_column(BigInteger)
    lease_boot: Mapped[str | None]


class TrialRow(Base):
    """One trial."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        # Counting trials by state, and failures by cause, reads this index and no row.
        Index(None, "study_id", "state", "cause"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str]
    origin: Mapped[str]
    baseline: Mapped[str | None]
    configuration: Mapped[dict[str, Any]]
    hash: Mapped[str]
    objectives: Mapped[dict[str, Any]]
    known: Mapped[dict[str, Any]]
    trainable_params: Mapped[int] = mapped_column(BigInteger)
    head_params: Mapped[int] = mapped_column(BigInteger)
    rung: Mapped[float | None]
    optimizer_steps: Mapped[int] = mapped_column(BigInteger, default=0)
    replicate: Mapped[int] = mapped_column(default=0)
    pack: Mapped[int]
    attempt_count: Mapped[int] = mapped_column(default=0)
    cause: Mapped[str | None]
    message: Mapped[str | None]
    profile: Mapped[dict[str, Any]]
    details: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempts: Mapped[list["AttemptRow"]] = relationship(
        lazy="raise", order_by="AttemptRow.number", passive_deletes=True
    )


class AttemptRow(Base):
    """One start of a trial's training; open while `finished_at` is null.

    `runner` says where it ran, `log` how it spoke its last.
    """

    __tablename__ = "attempts"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    cause: Mapped[str | None]
    message: Mapped[str | None]
    runner: Mapped[dict[str, Any] | None] = mapped_column(PlainJson(none_as_null=True))
    log: Mapped[str | None]


class OrphanRow(Base):
    """What a coordinator found that had lost its lease: kept to be looked at, never counted."""

    __tablename__ = "orphans"
    __table_args__ = (Index(None, "study_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    token: Mapped[int] = mapped_column(BigInteger)
    trial: Mapped[int]
    content: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class MeasurementRow(Base):
    """One value of one metric; the key keeps it unique and a trial's curve together, in order."""

    __tablename__ = "measurements"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    rung: Mapped[float | None]


class SnapshotRow(Base):
    """The front after one tell."""

    __tablename__ = "snapshots"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True
    )
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    trials: Mapped[int]
    front: Mapped[list[Any]]
    hypervolume: Mapped[float]
    at: Mapped[datetime]


class ConfirmationRow(Base):
    """One trial trained once more, with another replicate of the study's seed."""

    __tablename__ = "confirmations"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True
    )
    trial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    replicate: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    # "values" is a word of SQL: the column is called after the split it was measured on.
    validation: Mapped[dict[str, Any]]
    test: Mapped[dict[str, Any] | None]
    optimizer_steps: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt_count: Mapped[int] = mapped_column(default=0)
    cause: Mapped[str | None]
    message: Mapped[str | None]
    profile: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class ConfirmationAttemptRow(Base):
    """One start of a confirmation's run; as `AttemptRow` is of a trial's training."""

    __tablename__ = "confirmation_attempts"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True
    )
    trial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    replicate: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    cause: Mapped[str | None]
    message: Mapped[str | None]
    runner: Mapped[dict[str, Any] | None] = mapped_column(PlainJson(none_as_null=True))
    log: Mapped[str | None]


class OpeningRow(Base):
    """One opening of the test split: who, when, for which trials."""

    __tablename__ = "test_openings"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True
    )
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    opened_by: Mapped[str]
    trials: Mapped[list[Any]]
    replicates: Mapped[list[Any]]
    again: Mapped[bool]


class ImportanceRow(Base):
    """One measured importance map, shared by every study of its backbone and data."""

    __tablename__ = "importances"
    __table_args__ = (Index(None, "backbone", "data"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    backbone: Mapped[str]
    data: Mapped[str]
    settings: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    units: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class ImportancePartRow(Base):
    """One part of a map's blocks and single weights, which are its parts joined by number.

    None of a map that was stored without them.
    """

    __tablename__ = "importance_parts"

    importance_id: Mapped[int] = mapped_column(
        ForeignKey("importances.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[bytes] = mapped_column(LargeBinary)
