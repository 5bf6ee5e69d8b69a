"""Environments, task families and tasks of a service."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from headstart_client._async.transport import AsyncTransport
from headstart_client.applied import Applied
from headstart_client.errors import Problem
from headstart_client.tasks import (
    LARGEST_BATCH,
    Environment,
    Reward,
    Task,
    TaskFamily,
    counted_from,
    task_definition,
    tasks_of,
)
from headstart_client.transport import json_of, segment
from headstart_client.wire import parse


class AsyncEnvironments:
    """``client.environments``: the models that tasks can run in."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncIterator[Environment]:
        """Every environment of this service."""
        return (parse(Environment, e) async for e in self._transport.items("/v1/environments", "environments"))

    async def get(self, environment: str) -> Environment:
        """One environment, by id."""
        return parse(Environment, await self._transport.get(f"/v1/environments/{segment(environment)}"))


class AsyncFamilies:
    """``client.families``: distributions over tasks."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        environment: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        discount: float | None = None,
        horizon: int | None = None,
    ) -> TaskFamily:
        """Register a family; the same definition again gives the one that stands.

        Args:
            name: Its name.
            environment: Id of the environment of every task in it.
            parameters: Of each parameter that is not at its default: a constant, ``{"choice": [...]}``,
                ``{"uniform": [low, high]}`` or ``{"loguniform": [low, high]}``.
            reward: An expression; the environment's own reward where not given.
            discount: γ in (0, 1].
            horizon: Steps after which an episode is cut off.

        Raises:
            Conflict: If the name stands with another definition.
            InvalidRequest: If the definition is wrong.
        """
        definition = task_definition(
            environment, name=name, parameters=parameters, reward=reward, discount=discount, horizon=horizon
        )
        return await self.submit(definition)

    async def submit(self, body: Mapping[str, object]) -> TaskFamily:
        """Register a family from a whole request body, as :meth:`create`."""
        return parse(TaskFamily, await self._transport.create("/v1/task-families", body))

    async def get(self, family: str) -> TaskFamily:
        """One family, by name."""
        return parse(TaskFamily, await self._transport.get(f"/v1/task-families/{segment(family)}"))

    async def sample(self, family: str | TaskFamily, count: int, *, seed: int = 0, split: str = "train") -> list[Task]:
        """Draw tasks and register them; the same call gives the same tasks.

        Args:
            family: The family, or its name.
            count: How many, 1 to 1000.
            seed: Another seed, other tasks; at least 0.
            split: ``train``, ``validation`` or ``test``; their tasks are drawn independently.
        """
        name = family if isinstance(family, str) else family.name
        path = f"/v1/task-families/{segment(name)}:sample"
        return tasks_of(await self._transport.create(path, {"count": count, "seed": seed, "split": split}))

    def list(self) -> AsyncIterator[TaskFamily]:
        """Every family, presets included."""
        return (parse(TaskFamily, f) async for f in self._transport.items("/v1/task-families", "task_families"))


class AsyncTasks:
    """``client.tasks``: the tasks that are registered."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        environment: str,
        *,
        name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        discount: float | None = None,
        horizon: int | None = None,
        family: str | None = None,
        split: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Task:
        """Register a task; the same definition again gives the one that stands.

        Args:
            environment: Id of its environment.
            name: Its name; made from its digest where not given.
            parameters: Those that are not at their default.
            reward: An expression over ``observation``, ``action``, ``next_observation``, ``reward`` and
                ``terminated``; the environment's own reward where not given.
            discount: γ in (0, 1].
            horizon: Steps after which an episode is cut off.
            family: Name of the family it belongs to.
            split: ``train``, ``validation`` or ``test``.
            labels: Words to find it by.

        Raises:
            Conflict: If the name stands with another definition.
            InvalidRequest: If the definition is wrong.
        """
        body = task_definition(
            environment,
            name=name,
            parameters=parameters,
            reward=reward,
            discount=discount,
            horizon=horizon,
            family=family,
            split=split,
            labels=labels,
        )
        return parse(Task, await self._transport.create("/v1/tasks", body))

    async def create_many(self, tasks: Iterable[Mapping[str, object] | Task]) -> list[Task]:
        """Register many tasks, in batches of 1000; of each batch all or none.

        A batch that is refused leaves those before it registered; calling again with the same tasks makes no
        second ones. Pointers in the problem count from the first of all the tasks: ``/tasks/1204/discount``.

        Args:
            tasks: Definitions (arguments of :meth:`create` by name), or tasks as another service listed them.

        Returns:
            The tasks that stand, in the same order.
        """
        definitions = (t.definition() if isinstance(t, Task) else t for t in tasks)
        created: list[Task] = []
        while batch := list(itertools.islice(definitions, LARGEST_BATCH)):
            try:
                answer = await self._transport.create("/v1/tasks:batchCreate", {"tasks": batch})
            except Problem as problem:
                raise counted_from(problem, len(created)) from problem
            created += tasks_of(answer)
        return created

    async def apply(
        self,
        tasks: Iterable[Mapping[str, object] | Task] = (),
        families: Iterable[Mapping[str, object]] = (),
        *,
        dry_run: bool = False,
    ) -> Applied:
        """Make families and tasks stand as they are defined, all of them or none; again, it changes nothing.

        Unlike :meth:`create`, a name and labels that a definition gives must be those that stand.

        Args:
            tasks: Definitions (arguments of :meth:`create` by name), or tasks as another service listed them; at
                most 10,000.
            families: Definitions (arguments of :meth:`Families.create` by name); the tasks may be theirs.
            dry_run: Say what it would come to, conflicts included, and change nothing.

        Raises:
            Conflict: If anything stands against a definition; ``errors`` says what differs.
            InvalidRequest: If a definition is wrong.
        """
        definitions = [t.definition() if isinstance(t, Task) else t for t in tasks]
        body = {"families": list(families), "tasks": definitions, "dry_run": dry_run}
        if dry_run:
            return parse(Applied, json_of(await self._transport.request("POST", "/v1/tasks:apply", body=body)))
        return parse(Applied, await self._transport.create("/v1/tasks:apply", body))

    async def get(self, task: str) -> Task:
        """One task, by id or name."""
        return parse(Task, await self._transport.get(f"/v1/tasks/{segment(task)}"))

    def list(
        self,
        *,
        family: str | None = None,
        split: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Task]:
        """Registered tasks, of one family, split or with all of some labels, fetched as they are needed."""
        query = {
            "family": family,
            "split": split,
            "label": [f"{key}:{value}" for key, value in labels.items()] if labels else None,
        }
        return (parse(Task, t) async for t in self._transport.items("/v1/tasks", "tasks", query))

    async def delete(self, task: str | Task) -> None:
        """Hide a task; its name and definition become free.

        Raises:
            Conflict: While a run uses it.
        """
        await self._transport.request("DELETE", f"/v1/tasks/{segment(task if isinstance(task, str) else task.id)}")
