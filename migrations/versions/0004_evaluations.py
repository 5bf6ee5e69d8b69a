"""Evaluations: their protocol, what the worker needs, how far they are, and their files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    # No earlier version could make an evaluation: there is none to keep.
    _create_evaluations(
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("protocol", DOCUMENT, nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("progress", DOCUMENT, nullable=False),
        sa.Column("checkpoint_sha256", sa.Text(), nullable=True),
        sa.Column("verdicts", DOCUMENT, nullable=True),
    )
    for name in ("name", "checkpoint_sha256"):
        op.create_index(op.f(f"ix_evaluations_{name}"), "evaluations", [name], unique=False)
    op.create_table(
        "evaluation_files",
        sa.Column("evaluation_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_evaluation_files_evaluation_id_evaluations")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "name", name=op.f("pk_evaluation_files")),
    )
    op.create_index(op.f("ix_evaluation_files_sha256"), "evaluation_files", ["sha256"], unique=False)


def downgrade() -> None:
    op.drop_table("evaluation_files")
    _create_evaluations(
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("result", DOCUMENT, nullable=True),
    )


def _create_evaluations(*columns: sa.Column[object]) -> None:
    op.drop_table("evaluations")
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Text(), nullable=False),
        *columns,
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_at", MOMENT, nullable=True),
        sa.Column("error", DOCUMENT, nullable=True),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_evaluations_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index("ix_evaluations_state_id", "evaluations", ["state", "id"], unique=False)
    op.create_index("ix_evaluations_state_lease_expires_at", "evaluations", ["state", "lease_expires_at"], unique=False)
