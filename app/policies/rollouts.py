"""Fresh episodes of a policy, as numbers or as a film: computed beside the event loop, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.adaptations.remote import is_remote
from app.adaptations.service import find_task, read_task, require_same_spaces
from app.database import Database
from app.errors import CannotDraw, Invalid, Unavailable
from app.policies import service
from app.policies.schemas import EpisodeBody, RolloutBody, RolloutQuery
from app.store import ArtefactStore
from app.tables import Adaptation
from models import film, random
from models.checkpoint import policy_from_json
from models.environments.bridge import EnvironmentFailed
from models.policy import Policy
from models.rollout import NonFiniteReward, collect
from models.tasks import TaskBatch, environment_of
from models.types import InvalidValue, Params, Rollout, Task, stack_params

MAX_NUMBERS: Final = 2_000_000
"""Numbers in one answer, states not counted: each step has an observation, an action, a reward, a value and a
log-probability."""

MAX_FILM_EPISODES: Final = 10
"""Episodes of one film."""

MAX_FRAMES: Final = 3_000
"""Frames of one film: a minute at 50 a second."""

WAIT_S: Final = 30.0
"""How long a request waits for its turn."""


@dataclass(frozen=True)
class _Play:
    """Who acts in what.

    Attributes:
        policy: The architecture.
        params: One policy's tensors.
        tasks: The task.
        named: The task's id, or the definition of one that was never registered.
    """

    policy: Policy
    params: Params
    tasks: TaskBatch
    named: str | dict[str, Any]


@final
class Theatre:
    """Plays rollouts in this process: one at a time, on all its cores, and two films are drawn meanwhile.

    Make it where there is an event loop.
    """

    def __init__(self, database: Database, store: ArtefactStore) -> None:
        self._database = database
        self._store = store
        self._playing = asyncio.Semaphore(1)
        self._filming = asyncio.Semaphore(2)

    async def play(self, policy_id: str, query: RolloutQuery) -> bytes:
        """The episodes in the format that is asked for.

        Raises:
            CannotDraw: If something is missing that drawing needs.
            Invalid: If the task is unknown, has other spaces than the policy, or fails when it is played; or if that
                is too much for one answer.
            InvalidValue: If the task's environment has no renderer, or is not allowed any more.
            NotFound: If the policy does not stand.
            Unavailable: If too many others wait.
        """
        play = await run_in_threadpool(self._prepare, policy_id, query)
        if query.format == "json":
            async with _turn(self._playing, "rollouts are being computed"):
                rollout = await run_in_threadpool(_collect, play, query)
            return await run_in_threadpool(_as_json, policy_id, play, rollout, query)
        async with _turn(self._filming, "films are being made"):
            async with _turn(self._playing, "rollouts are being computed"):
                rollout = await run_in_threadpool(_collect, play, query)
            return await run_in_threadpool(_film, play, rollout, query.format)

    def _prepare(self, policy_id: str, query: RolloutQuery) -> _Play:
        with self._database.snapshot() as session:
            entry = service.get_policy(session, policy_id)
            task, named = _task(session, entry, query.task)
            spec, sha256 = entry.policy.spec, entry.policy.sha256
        require_same_spaces(spec, f"policy {policy_id}", task, "/task")
        _require_room(policy_from_json(spec), task, query)
        policy, params = service.read_policy(self._store, policy_id, spec, sha256)
        name = f"task {named}" if isinstance(named, str) else "the task"
        return _Play(policy, params, TaskBatch.of([task], names=[name]), named)


@asynccontextmanager
async def _turn(places: asyncio.Semaphore, busy: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WAIT_S):
            await places.acquire()
    except TimeoutError as error:
        raise Unavailable(f"{busy} for others, and none was done within {WAIT_S:g} s; try again") from error
    try:
        yield
    finally:
        places.release()


def _task(session: Session, entry: service.PolicyEntry, reference: str | None) -> tuple[Task, str | dict[str, Any]]:
    """The task that is named, or that the policy was adapted to, and what to call it."""
    try:
        if reference is not None:
            task, task_id = find_task(session, reference, "/task")
            return task, task_id or task.definition()
        adaptation = session.get(Adaptation, entry.policy.adaptation_id or "")
        if adaptation is None or entry.task is None:
            raise Invalid("/task", "must be given: this policy was not adapted to a task here")
        if is_remote(adaptation.task_definition):
            raise Invalid("/task", "must be given: the environment that this policy was adapted to is with a client")
        return read_task(adaptation.task_definition), entry.task
    except InvalidValue as error:
        raise InvalidValue(f"/task{error.pointer}", error.detail) from error


def _require_room(policy: Policy, task: Task, query: RolloutQuery) -> None:
    """Refuse what would be too much, were every episode as long as the task's horizon lets it be."""
    if query.format == "json":
        width = policy.observation_size + (1 if policy.discrete else policy.action_size) + 3
        most, what = MAX_NUMBERS // (task.horizon * width), f"{task.horizon} steps with {width} numbers each"
    else:
        film.require_renderer(environment_of(task))
        most = min(MAX_FILM_EPISODES, MAX_FRAMES // (task.horizon + 1))
        what = f"up to {task.horizon + 1} frames in a film"
    if not most:
        raise Invalid("/task", f"one episode of {what} is too much; adapt to, or name, a task of a shorter horizon")
    if query.episodes > most:
        raise Invalid("/episodes", f"{query.episodes} episodes of {what} are too many; at most {most} fit")


def _collect(play: _Play, query: RolloutQuery) -> Rollout:
    keys = random.key(query.seed, "rollout").reshape(1)
    params = stack_params(play.params, 1)
    with _told():
        return collect(
            play.policy,
            params,
            play.tasks,
            query.episodes,
            keys,
            deterministic=query.deterministic,
            states=True,
        )


def _film(play: _Play, rollout: Rollout, format: film.Format) -> bytes:
    with _told():
        return film.film(play.policy, play.tasks, rollout, format)


@contextmanager
def _told() -> Iterator[None]:
    """What the core cannot do with a task, as something that the caller is told."""
    try:
        yield
    except (NonFiniteReward, EnvironmentFailed) as error:
        raise Invalid("/task", str(error)) from error
    except film.CannotDraw as error:
        raise CannotDraw(str(error)) from error


@torch.no_grad()
def _as_json(policy_id: str, play: _Play, rollout: Rollout, query: RolloutQuery) -> bytes:
    policy, params, episodes = play.policy, stack_params(play.params, 1), []
    actions = policy.to_environment(rollout.action)
    for b, length in enumerate(rollout.lengths[0].tolist()):
        seen = rollout.observation[0, :length, b]
        value = policy.value(params, policy.features(params, seen.unsqueeze(0)))[0]
        reward, terminated = rollout.reward[0, :length, b].double(), bool(rollout.terminated[0, b])
        episodes.append(
            EpisodeBody(
                observations=[*seen.tolist(), rollout.final_observation[0, b].tolist()],
                states=None if rollout.state is None else rollout.state[0, : length + 1, b].tolist(),
                actions=actions[0, :length, b].tolist(),
                rewards=reward.tolist(),
                values=value.tolist(),
                log_probs=rollout.log_prob[0, :length, b].tolist(),
                terminated=terminated,
                truncated=not terminated,
                episode_return=float(reward.sum()),
            )
        )
    body = RolloutBody(
        policy=policy_id, task=play.named, seed=query.seed, deterministic=query.deterministic, episodes=episodes
    )
    return body.model_dump_json(by_alias=True).encode()
