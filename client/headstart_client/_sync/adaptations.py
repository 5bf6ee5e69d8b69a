# Generated from headstart_client/_async/adaptations.py by: python client/generate_sync.py
"""Adaptations of a service: uses of a version on a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart_client._sync.downloads import write_body
from headstart_client._sync.events import stream_events
from headstart_client._sync.transport import Transport
from headstart_client._sync.waiting import poll
from headstart_client.adaptations import (
    COLLECTING,
    LONGEST_PREFER_S,
    POLL_S,
    Adaptation,
    BroughtEpisode,
    Uploaded,
    adaptation_request,
    left_s,
    read_brought_episode,
    succeeded,
    task_reference,
)
from headstart_client.events import Event
from headstart_client.registry import VersionReference
from headstart_client.tasks import Task
from headstart_client.transport import json_of, segment
from headstart_client.wire import encode_numbers, id_of, parse


class Adaptations:
    """``client.adaptations``: uses of a version on a task."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: VersionReference | None,
        task: str | Task | Mapping[str, Any],
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: str | Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **hyperparameters: Any,
    ) -> Adaptation:
        """Adapt a model to a task; this is ``client.adapt``.

        Args:
            model: A version, or ``"cartpole/3"``, ``"cartpole@champion"``, ``"cartpole"`` (its newest
                version); ``None`` to start from ``policy``.
            task: A registered task, its id or name, or the definition of one that is not registered.
            method: ``"inner-loop"``, ``"ppo"``, ``"dqn"`` or ``"sac"``, or that and hyperparameters.
            seed: Of all its randomness.
            ttl_seconds: How long to keep the policy, in seconds.
            policy: Where ``model`` is ``None``: id of the policy to go on from, or a new one's architecture.
            wait: Whether to return only when it has succeeded.
            timeout_s: When to give up waiting, in seconds; ``None`` for never.
            **hyperparameters: Of the method, by name: ``steps=1, episodes=20``; of all but the inner loop, a budget
                is one of them: ``environment_steps=20_000, target_return=475``.

        Returns:
            The adaptation: with its ``policy``, ``before`` and ``after`` if it was waited for.

        Raises:
            AdaptationFailed: If it failed.
            Timeout: If the time is over; the adaptation goes on.
            InvalidRequest: If something in it is wrong.
        """
        body = adaptation_request(model, method, hyperparameters, seed=seed, ttl_seconds=ttl_seconds, policy=policy)
        body["task"] = task_reference(task)
        prefer_s = min(LONGEST_PREFER_S, LONGEST_PREFER_S if timeout_s is None else timeout_s) if wait else 0.0
        answer = self._transport.create(
            "/v1/adaptations", body, headers={"Prefer": f"wait={int(prefer_s)}"}, answer_within_s=prefer_s
        )
        adaptation = parse(Adaptation, answer)
        # Who was asked for episodes has to bring them: there is nothing to wait for.
        if not wait or adaptation.state == COLLECTING:
            return adaptation
        if adaptation.finished:
            return succeeded(adaptation)
        return self.wait(adaptation, None if timeout_s is None else max(0.0, timeout_s - prefer_s))

    def create_many(
        self,
        model: VersionReference | None,
        tasks: Iterable[str | Task | Mapping[str, Any]],
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: str | Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
        **hyperparameters: Any,
    ) -> list[Adaptation]:
        """Adapt a model to up to 1000 tasks at once; arguments as :meth:`create`.

        Returns:
            The adaptations in the order of the tasks; those that were waited for have ended, well or badly.

        Raises:
            Timeout: If the time is over; the adaptations go on.
            InvalidRequest: If something in it is wrong; then none is begun.
        """
        body = adaptation_request(model, method, hyperparameters, seed=seed, ttl_seconds=ttl_seconds, policy=policy)
        body["tasks"] = [task_reference(task) for task in tasks]
        answer = self._transport.create("/v1/adaptations:batchCreate", body)
        created = [parse(Adaptation, each) for each in answer.get("adaptations", ())]
        if not wait:
            return created
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        return self._all_ended(created, deadline_s)

    def _all_ended(self, created: Sequence[Adaptation], deadline_s: float | None) -> list[Adaptation]:
        """Adaptations of one request: most end together, so that after the last one they are read as a list."""
        self._ended(created[-1], left_s(deadline_s))
        oldest = min(each.id for each in created)
        now: dict[str, Adaptation] = {}
        for each in self.list():
            if each.id < oldest:
                break
            if each.finished:
                now[each.id] = each
        return [now.get(each.id) or self._ended(each, left_s(deadline_s)) for each in created]

    def cancel(self, adaptation: str | Adaptation) -> Adaptation:
        """Ask an adaptation to stop; a queued one never starts."""
        answer = self._transport.request("POST", f"{_path(adaptation)}:cancel")
        return parse(Adaptation, json_of(answer))

    def upload(
        self, adaptation: str | Adaptation, episodes: Sequence[Mapping[str, Any]], *, wait_s: float = 0.0
    ) -> Uploaded:
        """Bring episodes to an adaptation whose environment is with the client; ``client.adapt`` does so by itself.

        They may come from many places at once, in any order, in pieces, and more than once.

        Args:
            adaptation: The adaptation, or its id.
            episodes: Objects with ``id`` (chosen by you), ``revision``, ``observations`` (one more than steps),
                ``actions``, ``rewards``, ``log_probs``, ``policy_actions`` (of continuous actions), ``terminated``,
                ``truncated``, and ``offset`` for a piece that starts later than its episode.
            wait_s: How long to wait for a step that is due, in seconds, 60 at most.

        Raises:
            Conflict: If one of them stands with other content, or the adaptation is over; then none is stored.
            InvalidRequest: If something in one is wrong; then none is stored.
        """
        path = f"{_path(adaptation)}/episodes"
        headers = {"Prefer": f"wait={int(wait_s)}"}
        # By their ids, the same episodes again change nothing.
        answer = self._transport.request(
            "POST", path, body=encode_numbers({"episodes": list(episodes)}), headers=headers, answer_within_s=wait_s
        )
        return parse(Uploaded, json_of(answer))

    def finish(self, adaptation: str | Adaptation, timeout_s: float | None = None) -> Adaptation:
        """Close an adaptation whose environment is with the client, once the step that is due is taken.

        Raises:
            AdaptationFailed: If it failed or was cancelled.
            Timeout: If the time, in seconds, is over; it is finished later.
        """
        prefer_s = LONGEST_PREFER_S if timeout_s is None else min(LONGEST_PREFER_S, timeout_s)
        answer = self._transport.request(
            "POST",
            f"{_path(adaptation)}:finish",
            headers={"Prefer": f"wait={int(prefer_s)}"},
            answer_within_s=prefer_s,
        )
        found = parse(Adaptation, json_of(answer))
        if found.finished:
            return succeeded(found)
        return self.wait(found, None if timeout_s is None else max(0.0, timeout_s - prefer_s))

    def episodes(self, adaptation: str | Adaptation) -> Iterator[BroughtEpisode]:
        """What is known of the episodes that were brought, in the order in which they came."""
        items = self._transport.items(f"{_path(adaptation)}/episodes", "episodes")
        return (read_brought_episode(item) for item in items)

    def download_episodes(self, adaptation: str | Adaptation, to: str | Path) -> Path:
        """Write the episodes that were brought to the file ``to``.

        Each is a line that can be uploaded again, unless it is a recorded action.
        """
        path = Path(to)
        part = path.with_name(path.name + ".part")
        headers = {"Accept": "application/jsonl"}

        def fetch(_attempt: int) -> None:
            with self._transport.stream(f"{_path(adaptation)}/episodes?format=jsonl", headers) as response:
                write_body(response, part)

        self._transport.repeat(fetch)
        return part.replace(path)

    def events(self, adaptation: str | Adaptation, *, after: str | int | None = None) -> Generator[Event, None, None]:
        """What happens to an adaptation, as it happens, until it has ended: ``curve`` and ``state`` events."""
        return stream_events(self._transport, f"{_path(adaptation)}/events", None if after is None else str(after))

    def get(self, adaptation: str | Adaptation) -> Adaptation:
        """An adaptation as it is now."""
        return parse(Adaptation, self._transport.get(_path(adaptation)))

    def list(self) -> Iterator[Adaptation]:
        """Every adaptation, fetched as they are iterated over."""
        return (parse(Adaptation, a) for a in self._transport.items("/v1/adaptations", "adaptations"))

    def wait(
        self,
        adaptation: str | Adaptation,
        timeout_s: float | None = None,
        *,
        show: Callable[[Adaptation], None] | None = None,
    ) -> Adaptation:
        """Wait for an adaptation to succeed.

        Args:
            adaptation: The adaptation, or its id.
            timeout_s: When to give up, in seconds from now; ``None`` for never.
            show: Called with the adaptation as it is, about twice a second.

        Raises:
            AdaptationFailed: If it failed or was cancelled.
            Timeout: If the time, in seconds, is over; the adaptation goes on.
        """
        return succeeded(self._ended(adaptation, timeout_s, show))

    def _ended(
        self,
        adaptation: str | Adaptation,
        timeout_s: float | None,
        show: Callable[[Adaptation], None] | None = None,
    ) -> Adaptation:
        def look() -> Adaptation:
            found = self.get(adaptation)
            if show is not None:
                show(found)
            return found

        return poll(look, lambda now: now.finished, f"adaptation {id_of(adaptation)}", timeout_s, POLL_S)


def _path(adaptation: str | Adaptation) -> str:
    return f"/v1/adaptations/{segment(id_of(adaptation))}"
