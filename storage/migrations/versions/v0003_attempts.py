"""Attempts say where they ran and how they spoke their last; what came too late is kept apart."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("runner", sa.JSON(), nullable=True))
        attempts.add_column(sa.Column("log", sa.String(), nullable=True))
    op.create_table(
        "orphans",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["studies.id"],
            name=op.f("fk_orphans_study_id_studies"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orphans")),
    )
    op.create_index(op.f("ix_orphans_study_id"), "orphans", ["study_id"])


def downgrade() -> None:
    op.drop_table("orphans")
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("log")
        attempts.drop_column("runner")
