"""Runs of a confirmation keep their attempts, as trials do: where, why they ended, last lines."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "confirmation_attempts",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replicate", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cause", sa.String(), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("runner", sa.JSON(), nullable=True),
        sa.Column("log", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint(
            "study_id", "trial", "replicate", "number", name=op.f("pk_confirmation_attempts")
        ),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["studies.id"],
            name=op.f("fk_confirmation_attempts_study_id_studies"),
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("confirmation_attempts")
