"""Environments that live with the client: episodes, revisions of policies, recorded actions, a state of adaptations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)
STATES = "'queued', 'running', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    op.add_column("adaptations", sa.Column("counts", DOCUMENT, nullable=True))
    for name in ("touched_at", "finish_requested_at"):
        op.add_column("adaptations", sa.Column(name, MOMENT, nullable=True))
    _let_states_be(f"{STATES}, 'collecting'")
    op.add_column("policies", sa.Column("revision", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "policy_revisions",
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], name=op.f("fk_policy_revisions_policy_id_policies")),
        sa.PrimaryKeyConstraint("policy_id", "revision", name=op.f("pk_policy_revisions")),
    )
    op.create_index(op.f("ix_policy_revisions_sha256"), "policy_revisions", ["sha256"], unique=False)
    op.create_table(
        "episodes",
        sa.Column("adaptation_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=True),
        sa.Column("episode_return", sa.Double(), nullable=False),
        sa.Column("terminated", sa.Boolean(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("off_policy", sa.Double(), nullable=True),
        sa.Column("used_in", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["adaptation_id"], ["adaptations.id"], name=op.f("fk_episodes_adaptation_id_adaptations")
        ),
        sa.PrimaryKeyConstraint("adaptation_id", "id", name=op.f("pk_episodes")),
    )
    op.create_index("uq_episodes_adaptation_id_sequence", "episodes", ["adaptation_id", "sequence"], unique=True)
    op.create_index("ix_episodes_adaptation_id_used_in", "episodes", ["adaptation_id", "used_in"], unique=False)
    op.create_table(
        "episode_pieces",
        sa.Column("adaptation_id", sa.Text(), nullable=False),
        sa.Column("episode_id", sa.Text(), nullable=False),
        sa.Column("offset", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adaptation_id", "episode_id"],
            ["episodes.adaptation_id", "episodes.id"],
            name=op.f("fk_episode_pieces_adaptation_id_episode_id_episodes"),
        ),
        sa.PrimaryKeyConstraint("adaptation_id", "episode_id", "offset", name=op.f("pk_episode_pieces")),
    )
    op.create_table(
        "act_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("adaptation_id", sa.Text(), nullable=False),
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("observation", DOCUMENT, nullable=False),
        sa.Column("action", DOCUMENT, nullable=False),
        sa.Column("policy_action", DOCUMENT, nullable=True),
        sa.Column("log_prob", sa.Double(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("rewarded_at", MOMENT, nullable=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["adaptation_id"], ["adaptations.id"], name=op.f("fk_act_events_adaptation_id_adaptations")
        ),
        sa.ForeignKeyConstraint(["policy_id"], ["policies.id"], name=op.f("fk_act_events_policy_id_policies")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_act_events")),
    )
    for name in ("adaptation_id", "expires_at"):
        op.create_index(op.f(f"ix_act_events_{name}"), "act_events", [name], unique=False)


def downgrade() -> None:
    for table in ("act_events", "episode_pieces", "episodes", "policy_revisions"):
        op.drop_table(table)
    op.drop_column("policies", "revision")
    # An earlier version knows no such state; the policies stand.
    op.execute("UPDATE adaptations SET state = 'cancelled' WHERE state = 'collecting'")
    _let_states_be(STATES)
    for name in ("finish_requested_at", "touched_at", "counts"):
        op.drop_column("adaptations", name)


def _let_states_be(listed: str) -> None:
    # SQLite changes no constraint: there the table is made anew.
    with op.batch_alter_table("adaptations") as table:
        table.drop_constraint(op.f("ck_adaptations_state"), type_="check")
        table.create_check_constraint(op.f("ck_adaptations_state"), f"state IN ({listed})")
