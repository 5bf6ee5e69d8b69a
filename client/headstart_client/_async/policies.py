"""Policies of a service: what acts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from numpy.typing import ArrayLike

from headstart_client._async.downloads import download
from headstart_client._async.registry import AsyncVersions
from headstart_client._async.streams import AsyncPolicyStream
from headstart_client._async.transport import AsyncTransport
from headstart_client.adaptations import Adaptation
from headstart_client.policies import (
    MEDIA_TYPES,
    ROLLOUT_S,
    VIDEO_S,
    Action,
    Outcome,
    Policy,
    observation_batch,
    policy_of,
    read_action,
)
from headstart_client.registry import Version
from headstart_client.rollouts import Rollout, read_rollout
from headstart_client.transport import json_of, segment
from headstart_client.wire import encode_numbers, id_of, parse, without_none


class AsyncPolicies:
    """``client.policies``: what acts."""

    def __init__(self, transport: AsyncTransport, versions: AsyncVersions) -> None:
        self._transport = transport
        self._versions = versions

    async def get(self, policy: str) -> Policy:
        """One policy, by id."""
        return parse(Policy, await self._transport.get(f"/v1/policies/{segment(policy)}"))

    def list(self) -> AsyncIterator[Policy]:
        """Every policy, fetched as they are iterated over."""
        return (parse(Policy, p) async for p in self._transport.items("/v1/policies", "policies"))

    async def publish(self, policy: str | Policy | Adaptation, model: str) -> Version:
        """Make a policy the next version of a model: it stands when the policy has expired, and can be adapted further.

        Args:
            policy: The policy or its id, or the adaptation that yielded it.
            model: Name of the model; made if it is new.
        """
        path = f"/v1/policies/{segment(policy_of(policy))}:publish"
        return parse(Version, await self._transport.create(path, {"model": model}))

    async def delete(self, policy: str | Policy) -> None:
        """Remove a policy and its files."""
        await self._transport.request("DELETE", f"/v1/policies/{segment(id_of(policy))}")

    async def download(self, policy: str | Policy, to: str | Path, *, file: str = "policy.safetensors") -> Path:
        """Download one of a policy's files (or ``policy.onnx``) to the file ``to``, checked."""
        found = await self.get(id_of(policy))
        sha256 = next((f.sha256 for f in found.files if f.name == file), None)
        return await download(
            self._transport, f"/v1/policies/{segment(found.id)}/files/{segment(file)}", Path(to), sha256
        )

    async def act(
        self,
        actor: str | Policy | Adaptation | Version,
        observations: ArrayLike,
        *,
        deterministic: bool = True,
        seed: int | None = None,
        revision: int | None = None,
        policy_actions: bool = False,
        record: bool = False,
    ) -> Action:
        """Ask for actions; this is ``client.act``.

        Args:
            actor: A policy or its id, a finished adaptation, or a version (``"cartpole/3"``,
                ``"cartpole@champion"``) whose bare initialisation is to act. An alias costs a second request:
                in a loop, resolve it once with ``client.versions.get``.
            observations: [B, O], or [O] for one, in environment units.
            deterministic: The likeliest action (True) or one drawn from the policy's distribution.
            seed: Makes drawn actions repeatable.
            revision: Of the policy, at least.
            policy_actions: Whether to answer continuous actions as they were drawn, too.
            record: Whether to remember the action, of one observation, until :meth:`reward` tells what came of it.
                Sent once: where the answer is lost, so is the event.

        Raises:
            Conflict: If there is nothing to record for: the policy is not one of an adaptation that is collecting.
            InvalidRequest: If an observation has the wrong size.
            ValueError: If an observation holds a NaN or an infinity.
        """
        body = without_none(
            observations=observation_batch(observations),
            deterministic=deterministic,
            seed=seed,
            revision=revision,
            policy_actions=policy_actions or None,
            record=record or None,
        )
        path = f"{await self._actor_path(actor)}:act"
        answer = await self._transport.request("POST", path, body=encode_numbers(body), repeatable=not record)
        return read_action(json_of(answer))

    async def reward(self, event: str | Action, reward: float) -> Outcome:
        """Tell what came of an action that was recorded; the same reward again changes nothing.

        Args:
            event: The action, or its ``event_id``.
            reward: In the task's reward units.

        Raises:
            Conflict: If another reward was told before, or the adaptation is over.
            Gone: If it comes too late.
        """
        name = event.event_id if isinstance(event, Action) else event
        if name is None:
            raise ValueError("this action was not recorded: act with record=True")
        answer = await self._transport.request("POST", f"/v1/events/{segment(name)}:reward", body={"reward": reward})
        return parse(Outcome, json_of(answer))

    def stream(
        self, policy: str | Policy | Adaptation, *, deterministic: bool = True, reopen: bool = False
    ) -> AsyncPolicyStream:
        """A connection on which a policy acts, one message an observation: what a control loop wants.

        Args:
            policy: The policy or its id, or the adaptation that yields it.
            deterministic: The likeliest actions (True) or ones drawn from the policy's distribution, where a message
                does not say.
            reopen: Whether ``act`` opens a stream again that is not open or breaks, and asks once more: that is safe,
                but what is drawn then follows from no seed any more.

        Returns:
            The stream, to be used in an ``async with`` statement.
        """
        return AsyncPolicyStream(self._transport, policy_of(policy), deterministic, reopen)

    async def rollout(
        self,
        policy: str | Policy | Adaptation,
        *,
        episodes: int = 1,
        seed: int = 0,
        deterministic: bool = True,
        task: str | None = None,
    ) -> Rollout:
        """Run fresh episodes of a policy on the service.

        Args:
            policy: The policy or its id, or the adaptation that yielded it.
            episodes: How many, 1 to 100.
            seed: The same seed gives the same episodes.
            deterministic: The likeliest actions (True) or ones drawn from the policy's distribution.
            task: Id or name of a task of the same spaces; by default the one it was adapted to.

        Raises:
            InvalidRequest: If that is too much for one answer, or the task has other spaces.
        """
        query = {"episodes": episodes, "seed": seed, "deterministic": deterministic, "task": task}
        return read_rollout(json_of(await self._roll_out(policy, "json", query, ROLLOUT_S)))

    async def video(
        self,
        policy: str | Policy | Adaptation,
        to: str | Path | None = None,
        *,
        format: str | None = None,
        episodes: int = 1,
        seed: int = 0,
        deterministic: bool = True,
        task: str | None = None,
    ) -> bytes:
        """Have fresh episodes of a policy drawn by the renderer of its environment, one after another.

        Args:
            policy: The policy or its id, or the adaptation that yielded it.
            to: A file to write it to as well.
            format: mp4 or gif; by default what the file's name ends in, and mp4 without one.
            episodes: How many, 1 to 10.
            seed: The same seed shows the episodes that :meth:`rollout` gives.
            deterministic: As there.
            task: As there.

        Returns:
            The film, as the bytes of a file.

        Raises:
            InvalidRequest: If the environment has no renderer, or the film would be too long.
        """
        chosen = format or ("gif" if str(to).endswith(".gif") else "mp4")
        query = {"episodes": episodes, "seed": seed, "deterministic": deterministic, "task": task}
        content = (await self._roll_out(policy, chosen, query, VIDEO_S)).content
        if to is not None:
            Path(to).write_bytes(content)
        return content

    async def _roll_out(
        self, policy: str | Policy | Adaptation, format: str, query: Mapping[str, Any], answer_within_s: float
    ) -> httpx.Response:
        return await self._transport.request(
            "GET",
            f"/v1/policies/{segment(policy_of(policy))}/rollout",
            query={"format": format, **query},
            headers={"Accept": f"{MEDIA_TYPES[format]}, application/problem+json"},
            answer_within_s=answer_within_s,
        )

    async def _actor_path(self, actor: str | Policy | Adaptation | Version) -> str:
        if isinstance(actor, Version) or (isinstance(actor, str) and ("/" in actor or "@" in actor)):
            return await self._versions.path(actor)
        return f"/v1/policies/{segment(policy_of(actor))}"
