"""What held-out evaluations found: each task's returns, and which iteration of a run was the best."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("runs", sa.Column("best", DOCUMENT, nullable=True))
    op.add_column("run_metrics", sa.Column("evaluation", DOCUMENT, nullable=True))


def downgrade() -> None:
    op.drop_column("run_metrics", "evaluation")
    op.drop_column("runs", "best")
