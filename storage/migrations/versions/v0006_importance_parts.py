"""Blocks and single weights of importance maps, in parts: maps may be larger than one value."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PART_BYTES = 1 << 24

MOVE = sa.text(
    "INSERT INTO importance_parts (importance_id, number, content) "
    "SELECT id, :number, substr(fine, :start, :size) FROM importances WHERE length(fine) >= :start"
)
"""One part of every map that has so many; the bytes stay within the database."""


def upgrade() -> None:
    op.create_table(
        "importance_parts",
        sa.Column("importance_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["importance_id"],
            ["importances.id"],
            name=op.f("fk_importance_parts_importance_id_importances"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("importance_id", "number", name=op.f("pk_importance_parts")),
    )
    number, moved = 0, 1
    while moved:
        given = {"number": number, "start": number * PART_BYTES + 1, "size": PART_BYTES}
        moved = op.get_bind().execute(MOVE, given).rowcount
        number += 1
    # PostgreSQL keeps the bytes of a dropped column, but not those of a value that was replaced.
    op.execute("UPDATE importances SET fine = NULL")
    # No batch: on SQLite it makes the table anew, and where foreign keys hold the parts go with
    # the old one.
    op.drop_column("importances", "fine")


def downgrade() -> None:
    """Maps lose their blocks and single weights: they are measured again."""
    op.add_column("importances", sa.Column("fine", sa.LargeBinary(), nullable=True))
    op.drop_table("importance_parts")
