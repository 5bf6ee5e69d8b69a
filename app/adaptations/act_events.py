"""Recorded actions, whose rewards come later: each with its reward is an episode of one step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.adaptations.counts import Counts
from app.adaptations.episodes import store
from app.adaptations.pieces import EVENT_PREFIX, Piece
from app.adaptations.remote import open_adaptation, require_open
from app.database import Database, now
from app.errors import Conflict, Gone, NotFound
from app.tables import ActEvent, Adaptation, Policy
from app.work import get_work

KEPT_FOR = timedelta(days=1)
"""Time for which a recorded action is remembered after its reward can come no more."""


def record_act(
    session: Session,
    policy_id: str,
    observation: Sequence[float],
    action: int | Sequence[float],
    policy_action: Sequence[float] | None,
    log_prob: float,
    revision: int,
) -> str:
    """Write down an action that is about to be answered; the id by which its reward is told.

    Args:
        session: A writing one.
        policy_id: Who acted.
        observation: [O].
        action: In environment units.
        policy_action: In policy units, where actions are continuous.
        log_prob: Of the action under the revision that acted.
        revision: Which that was.

    Raises:
        Conflict: If the policy is of no remote adaptation, or that is over.
        Gone: If the policy was deleted or has expired.
        NotFound: If there is no such policy.
    """
    policy = session.get(Policy, policy_id)
    if policy is None:
        raise NotFound(f"there is no policy {policy_id!r}")
    adaptation = session.get(Adaptation, policy.adaptation_id or "")
    if adaptation is None or adaptation.counts is None:
        raise Conflict(f"policy {policy_id} is of no remote adaptation: there is nothing to record an action for")
    require_open(session, adaptation)
    seconds = adaptation.task_definition["remote"]["reward_seconds"]
    event = ActEvent(
        adaptation_id=adaptation.id,
        policy_id=policy_id,
        revision=revision,
        observation=[float(x) for x in observation],
        action=action if isinstance(action, int) else [float(x) for x in action],
        policy_action=None if policy_action is None else [float(x) for x in policy_action],
        log_prob=log_prob,
        expires_at=now() + timedelta(seconds=seconds),
    )
    session.add(event)
    session.flush()
    return event.id


def reward_event(session: Session, event_id: str, reward: float) -> ActEvent:
    """Tell what came of a recorded action: it is an episode of one step then.

    The same reward may be told again.

    Raises:
        Conflict: If another reward was told, or the adaptation takes no more episodes.
        Gone: If it is too late.
        NotFound: If there is no such action.
    """
    event = session.get(ActEvent, event_id)
    if event is None:
        raise NotFound(f"there is no event {event_id!r}")
    # Whoever tells the reward at the same time waits for the adaptation's lock.
    get_work(session, Adaptation, event.adaptation_id, lock=True)
    session.refresh(event)
    if event.reward is not None:
        if event.reward != reward:
            raise Conflict(f"event {event_id} has the reward {event.reward:g} already")
        return event
    if event.expires_at <= now():
        raise Gone(f"event {event_id} expired at {event.expires_at.isoformat()}: its reward came too late")
    row, _ = open_adaptation(session, event.adaptation_id)
    event.reward, event.rewarded_at = reward, now()
    store(session, row, [_piece(event, reward)])
    return event


def expire_events(database: Database) -> None:
    """Count the actions whose reward can come no more, and forget those of more than a day ago."""
    late = (ActEvent.expires_at < now()) & ActEvent.reward.is_(None) & ~ActEvent.counted
    old = ActEvent.expires_at < now() - KEPT_FOR
    with database.snapshot() as session:
        ids = sorted(session.scalars(select(ActEvent.adaptation_id).where(late).distinct()))
        if not ids and session.scalar(select(ActEvent.id).where(old).limit(1)) is None:
            return
    for adaptation_id in ids:
        with database.transaction() as session:
            row = get_work(session, Adaptation, adaptation_id, lock=True)
            of = late & (ActEvent.adaptation_id == adaptation_id)
            count = session.scalar(select(func.count()).select_from(ActEvent).where(of)) or 0
            session.execute(update(ActEvent).where(of).values(counted=True))
            counts = Counts.of(row)
            row.counts = counts.to_json() | {"events_expired": counts.events_expired + count}
    with database.transaction() as session:
        session.execute(delete(ActEvent).where(old, ActEvent.counted | ActEvent.reward.is_not(None)))


def _piece(event: ActEvent, reward: float) -> Piece:
    # What was seen after the action nobody has said. What was seen before stands in for it; as the episode is over
    # with a terminal state, nothing is learned from it.
    arrays = {
        "observations": np.array([event.observation, event.observation], np.float64),
        "actions": np.array([event.action], np.int64 if isinstance(event.action, int) else np.float64),
        "rewards": np.array([reward], np.float64),
        "log_probs": np.array([event.log_prob], np.float64),
    }
    if event.policy_action is not None:
        arrays["policy_actions"] = np.array([event.policy_action], np.float64)
    return Piece.of(0, EVENT_PREFIX + event.id, event.revision, 0, True, False, arrays)
