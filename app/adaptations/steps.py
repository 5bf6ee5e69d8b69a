"""Executing what is due of a remote adaptation under a lease: one step, or its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from operator import attrgetter
from typing import Any, final

import torch
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.adaptations.counts import Counts
from app.adaptations.episodes import load_episode, pieces_of
from app.adaptations.origin import Origin, read_origin
from app.adaptations.remote import next_state, remote_task, require_standing
from app.adaptations.service import read_method
from app.database import now
from app.execution import Job, finite
from app.store import ArtefactStore
from app.sweep import discard
from app.tables import Adaptation, Episode, EpisodePiece, Policy, PolicyRevision
from models.adaptation import MAX_ACTIVATIONS_PER_TASK, MAX_STEPS_PER_TASK, InnerLoop, require_convergence
from models.checkpoint import check_params, load_params, policy_from_json, save_params, save_policy
from models.experience import Transitions, read_episodes
from models.finetune import MethodConfig, PPOConfig
from models.finetune.uploaded import improve
from models.learners import Learner
from models.policy import Policy as PolicyArchitecture
from models.remote import RemoteTask
from models.types import Params, stack_params


def execute_remote(job: Job) -> None:
    """Take the step that is due, or else finish the adaptation if that was asked for.

    The step learns from all complete episodes that none has learned from, as they are now, in the order of their ids.
    Nothing is kept of a step that does not come to its end: whoever takes it again gets the same.

    Raises:
        Interrupted: If the process ends, the adaptation is cancelled or the lease lost.
        LeaseLost: If it is another worker's now.
        Exception: What fails it.
    """
    _Step(job).execute()


@dataclass
class _Outcome:
    """What was computed.

    Attributes:
        params: The policy as it is to be published; None where it stays as it is.
        off_policy: Of each episode, in nats; empty where none was learned from.
        state: What the next step goes on with beside the policy; None where there is no such thing.
        metrics: What the method has to tell.
    """

    params: Params | None = None
    off_policy: Sequence[float] = ()
    state: Params | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@final
class _Step:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._started_at = time.monotonic()

        def claim(session: Session) -> tuple[Adaptation, Policy, Origin]:
            job.lease.write(session)
            row = session.get_one(Adaptation, job.lease.id)
            policy = session.get_one(Policy, row.policy_id)
            require_standing(policy)
            self._choose_episodes(session, row, sum(policy.spec["policy"]["hidden"]))
            # Every step goes on from the newest revision, by the learner of the version that the first came from.
            return row, policy, read_origin(session, row.model, row.version, row.policy_id)

        self._rows: list[Episode] = []
        self._pieces: dict[str, list[EpisodePiece]] = {}
        self._revisions: dict[int, str] = {}
        self._row, self._policy, self._origin = job.persist(claim)
        # Without a lock: complete episodes never change, and whoever holds the lease alone says that they are used.
        job.read(self._read_episodes)
        self._task: RemoteTask = remote_task(self._row)
        self._method: InnerLoop | MethodConfig = read_method(self._row.method)

    @property
    def _architecture(self) -> PolicyArchitecture:
        return policy_from_json(self._policy.spec)

    def _choose_episodes(self, session: Session, row: Adaptation, units: int) -> None:
        counts = Counts.of(row)
        self._is_step = counts.is_due(row.method)
        waiting = (Episode.adaptation_id == row.id) & Episode.complete & Episode.used_in.is_(None)
        if not self._is_step:
            waiting &= Episode.revision == counts.revision
        rows = list(session.scalars(select(Episode).where(waiting)))
        if self._is_step:
            self._rows = _that_fit(sorted(rows, key=_id), units)
            rows = self._rows
        else:
            self._rows = sorted(_that_fit(sorted(rows, key=_sequence, reverse=True), units), key=_id)
        self._returns = [each.episode_return for each in rows]

    def _read_episodes(self, session: Session) -> None:
        self._pieces = pieces_of(session, self._row.id, [each.id for each in self._rows])
        acted = (PolicyRevision.policy_id == self._row.policy_id) & PolicyRevision.revision.in_(
            {each.revision for each in self._rows}
        )
        self._revisions = {each.revision: each.sha256 for each in session.scalars(select(PolicyRevision).where(acted))}

    def execute(self) -> None:
        """Compute, and publish what came of it."""
        if self._is_step:
            self._publish_step(self._job.interrupter.compute(self._computed_step))
        elif self._row.finish_requested_at is not None:
            self._publish_end(self._job.interrupter.compute(self._computed_end))
        else:
            self._job.persist(self._go_on_collecting)

    def _built(self) -> tuple[Learner[Any], Params]:
        """The learner, and the newest revision with what its version has learned beside a policy; not stacked."""
        learner, params = self._origin.build(self._job.store, self._task, [self._row.seed])
        return learner, {name: value[0] for name, value in params.items()}

    def _transitions(self, learner: Learner[Any]) -> Transitions:
        episodes = [load_episode(row, self._pieces[row.id]) for row in self._rows]
        untold = {episode.revision for episode in episodes if episode.log_prob is None}
        shapes = learner.policy.shapes()
        behaviour = {
            each: check_params(shapes, load_params(self._job.store.read(self._revisions[each]))) for each in untold
        }
        return read_episodes(learner.policy, episodes, behaviour)

    def _computed_step(self) -> _Outcome:
        learner, params = self._built()
        transitions, policy, counts = self._transitions(learner), learner.policy, Counts.of(self._row)
        off_policy = transitions.divergences(policy, params)
        if isinstance(self._method, PPOConfig):
            improvement = improve(
                self._method,
                policy,
                {name: params[name] for name in policy.shapes()},
                transitions,
                self._task.discount,
                self._row.seed,
                used=counts.fraction(self._row.method),
                time=counts.environment_steps_used,
                state=_resumed(self._job.store, self._row.checkpoint_sha256),
            )
            return _Outcome(improvement.params, off_policy, improvement.state, improvement.metrics)
        assert isinstance(self._method, InnerLoop)
        step, discount = counts.steps_taken, torch.tensor([self._task.discount])
        rate, rollout = self._method.learning_rate, transitions.rollout()
        adapted = learner.update(stack_params(params, 1), discount, rollout, step, rate)
        require_convergence(adapted, step + 1)
        return _Outcome({name: adapted[name][0] for name in policy.shapes()}, off_policy)

    def _computed_end(self) -> _Outcome:
        """The inner loop leaves the value head alone: in the end it is fitted to the last revision's episodes."""
        if not self._rows or not isinstance(self._method, InnerLoop):
            return _Outcome()
        learner, params = self._built()
        rollout = self._transitions(learner).rollout()
        fitted = learner.fit_value(stack_params(params, 1), torch.tensor([self._task.discount]), rollout)
        return _Outcome({name: fitted[name][0] for name in learner.policy.shapes()})

    def _publish_step(self, outcome: _Outcome) -> None:
        assert outcome.params is not None
        store, before = self._job.store, self._row.checkpoint_sha256
        file = store.put(save_policy(self._architecture, outcome.params))
        checkpoint = None if outcome.state is None else store.put(save_params(outcome.state))[0]

        def publish(session: Session) -> None:
            if (row := self._locked(session)) is None:
                return
            counts = Counts.of(row)
            result = self._result(row, counts)
            result["before"] = result["before"] or self._mean_return()
            steps = sum(each.steps for each in self._rows)
            counts = replace(
                counts,
                episodes_used=counts.episodes_used + len(self._rows),
                environment_steps_used=counts.environment_steps_used + steps,
                steps_taken=counts.steps_taken + 1,
                off_policy=sum(outcome.off_policy) / len(outcome.off_policy),
            )
            counts = self._add_revision(session, counts, file)
            if isinstance(self._method, PPOConfig):
                result["stopped_by"] = counts.stopped_by(row.method)
            self._mark_used(session, counts.steps_taken, outcome.off_policy)
            values = {
                "counts": counts.to_json(),
                "result": result,
                "progress": self._progress(row, counts, result["seconds"]) | {"metrics": finite(outcome.metrics)},
                "checkpoint_sha256": checkpoint,
                "state": next_state(row, counts),
            }
            self._job.lease.write(session, **values, **_FREE)

        self._job.persist(publish)
        discard(self._job.database, store, [] if before is None else [before])

    def _publish_end(self, outcome: _Outcome) -> None:
        before = self._row.checkpoint_sha256
        file = None if outcome.params is None else self._job.store.put(save_policy(self._architecture, outcome.params))

        def publish(session: Session) -> None:
            if (row := self._locked(session)) is None:
                return
            counts = Counts.of(row)
            result = self._result(row, counts)
            if self._returns:
                result["after"] = self._mean_return()
                result["before"] = result["before"] or result["after"]
            if file is not None:
                counts = self._add_revision(session, counts, file)
            progress = self._progress(row, counts, result["seconds"]) | {"fraction": 1.0}
            values = {"result": result, "counts": counts.to_json(), "checkpoint_sha256": None}
            self._job.lease.end(session, "succeeded", **values, progress=(row.progress or {}) | progress)

        self._job.persist(publish)
        discard(self._job.database, self._job.store, [] if before is None else [before])

    def _go_on_collecting(self, session: Session) -> None:
        if (row := self._locked(session)) is not None:
            self._job.lease.write(session, state=next_state(row, Counts.of(row)), **_FREE)

    def _locked(self, session: Session) -> Adaptation | None:
        """The row as it is by now, for this worker to change; None, and over, if it was to be cancelled."""
        if self._job.lease.write(session):
            self._job.lease.end(session, "cancelled")
            return None
        return session.get_one(Adaptation, self._row.id, populate_existing=True)

    def _add_revision(self, session: Session, counts: Counts, file: tuple[str, int]) -> Counts:
        """Make new parameters the policy's newest; its life begins anew."""
        policy, (sha256, size_bytes) = session.get_one(Policy, self._policy.id, populate_existing=True), file
        require_standing(policy)
        number = counts.revision + 1
        policy.sha256, policy.size_bytes, policy.revision = sha256, size_bytes, number
        policy.expires_at = now() + timedelta(seconds=self._row.ttl_seconds or 0)
        session.add(PolicyRevision(policy_id=policy.id, revision=number, sha256=sha256, size_bytes=size_bytes))
        session.flush()
        return replace(counts, revision=number)

    def _mark_used(self, session: Session, step: int, off_policy: Sequence[float]) -> None:
        keys = [{"adaptation_id": row.adaptation_id, "id": row.id} for row in self._rows]
        values = [key | {"used_in": step, "off_policy": amount} for key, amount in zip(keys, off_policy, strict=True)]
        session.execute(update(Episode), values)

    def _mean_return(self) -> dict[str, Any]:
        return {"mean_return": sum(self._returns) / len(self._returns), "episodes": len(self._returns)}

    def _result(self, row: Adaptation, counts: Counts) -> dict[str, Any]:
        """What the adaptation shows, with a point of the curve for the episodes of this step or of the end."""
        result = {"before": None, "after": None, "curve": [], "seconds": 0.0} | (row.result or {})
        if self._returns:
            point = {
                "episodes": counts.episodes_used,
                "environment_steps": counts.environment_steps_used,
                "mean_return": self._mean_return()["mean_return"],
            }
            result["curve"] = [*result["curve"], point]
        result["seconds"] += time.monotonic() - self._started_at
        return result

    def _progress(self, row: Adaptation, counts: Counts, seconds: float) -> dict[str, Any]:
        return {
            "fraction": counts.fraction(row.method),
            "environment_steps": counts.environment_steps_used,
            "episodes": counts.episodes_used,
            "seconds": seconds,
        }


_FREE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None, "crashes": 0}
"""What a row says that no worker has."""


_id, _sequence = attrgetter("id"), attrgetter("sequence")


def _that_fit(rows: Sequence[Episode], units: int) -> list[Episode]:
    """The first of the episodes, as many as fit in memory side by side, as long as the longest."""
    limit, longest = min(MAX_STEPS_PER_TASK, MAX_ACTIVATIONS_PER_TASK // units), 0
    kept: list[Episode] = []
    for row in rows:
        longest = max(longest, row.steps)
        if kept and longest * (len(kept) + 1) > limit:
            break
        kept.append(row)
    return kept


def _resumed(store: ArtefactStore, sha256: str | None) -> Params | None:
    return None if sha256 is None else load_params(store.read(sha256))
