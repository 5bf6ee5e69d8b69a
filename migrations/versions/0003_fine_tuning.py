"""Adaptations that take their time: progress, checkpoints, what they start from, and whose work is done together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("adaptations", sa.Column("progress", DOCUMENT, nullable=True))
    for name in ("start_policy_id", "lead_id", "checkpoint_sha256"):
        op.add_column("adaptations", sa.Column(name, sa.Text(), nullable=True))
    for name in ("lead_id", "checkpoint_sha256"):
        op.create_index(op.f(f"ix_adaptations_{name}"), "adaptations", [name], unique=False)


def downgrade() -> None:
    for name in ("checkpoint_sha256", "lead_id"):
        op.drop_index(op.f(f"ix_adaptations_{name}"), "adaptations")
    for name in ("checkpoint_sha256", "lead_id", "start_policy_id", "progress"):
        op.drop_column("adaptations", name)
