"""Importance maps, measured once per backbone and data."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "importances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("data", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("units", sa.LargeBinary(), nullable=False),
        sa.Column("fine", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_importances")),
        sa.UniqueConstraint("key", name=op.f("uq_importances_key")),
    )
    op.create_index(op.f("ix_importances_backbone_data"), "importances", ["backbone", "data"])


def downgrade() -> None:
    op.drop_table("importances")
