"""Policies: what acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client.adaptations import Adaptation
from headstart_client.downloads import download
from headstart_client.errors import HeadstartError, InvalidResponse
from headstart_client.registry import Version, Versions
from headstart_client.rollouts import Rollout, read_rollout
from headstart_client.transport import Transport, json_of, segment
from headstart_client.wire import File, Resource, id_of, parse, without_none

ROLLOUT_S = 120.0
VIDEO_S = 900.0
MEDIA_TYPES = {"json": "application/json", "gif": "image/gif", "mp4": "video/mp4"}


@dataclass(frozen=True, kw_only=True)
class Policy(Resource):
    """What acts.

    Attributes:
        id: Its unique id.
        adaptation: Id of the adaptation that yielded it.
        model: Name of the model that was adapted.
        version: Number of that model's version.
        task: Id of the task it was adapted to, or its inline definition.
        observation_space: Shape and bounds of what it takes.
        action_space: What it answers.
        files: What can be downloaded.
        created_at: When it was made, UTC.
        expires_at: When it is removed, UTC; ``None`` for never.
    """

    id: str
    adaptation: str | None = None
    model: str | None = None
    version: int | None = None
    task: str | Mapping[str, Any] | None = None
    observation_space: Mapping[str, Any] = field(default_factory=dict)
    action_space: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, eq=False)
class Action:
    """What a policy does, for ``B`` observations.

    Attributes:
        actions: [B] int64 where actions are discrete, else [B, A] float64 in environment units.
        log_probs: [B], log-probability (density) of each action.
        values: [B], the value the policy expects from each observation on, in reward units; ``None`` without
            a critic.
        policy: Id of what acted.
        raw: The whole JSON object.
    """

    actions: NDArray[Any]
    log_probs: NDArray[np.float64]
    values: NDArray[np.float64] | None
    policy: str | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Policies:
    """``client.policies``: what acts."""

    def __init__(self, transport: Transport, versions: Versions) -> None:
        self._transport = transport
        self._versions = versions

    def get(self, policy: str) -> Policy:
        """One policy, by id."""
        return parse(Policy, self._transport.get(f"/v1/policies/{segment(policy)}"))

    def list(self) -> Iterator[Policy]:
        """Every policy, fetched as they are iterated over."""
        return (parse(Policy, p) for p in self._transport.items("/v1/policies", "policies"))

    def publish(self, policy: str | Policy | Adaptation, model: str) -> Version:
        """Make a policy the next version of a model: it stands when the policy has expired, and can be adapted further.

        Args:
            policy: The policy or its id, or the adaptation that yielded it.
            model: Name of the model; made if it is new.
        """
        path = f"/v1/policies/{segment(_policy_of(policy))}:publish"
        return parse(Version, self._transport.create(path, {"model": model}))

    def delete(self, policy: str | Policy) -> None:
        """Remove a policy and its files."""
        self._transport.request("DELETE", f"/v1/policies/{segment(id_of(policy))}")

    def download(self, policy: str | Policy, to: str | Path, *, file: str = "policy.safetensors") -> Path:
        """Download one of a policy's files (or ``policy.onnx``) to the file ``to``, checked."""
        found = self.get(id_of(policy))
        sha256 = next((f.sha256 for f in found.files if f.name == file), None)
        return download(self._transport, f"/v1/policies/{segment(found.id)}/files/{segment(file)}", Path(to), sha256)

    def act(
        self,
        actor: str | Policy | Adaptation | Version,
        observations: ArrayLike,
        *,
        deterministic: bool = True,
        seed: int | None = None,
    ) -> Action:
        """Ask for actions; this is ``client.act``.

        Args:
            actor: A policy or its id, a finished adaptation, or a version (``"cartpole/3"``,
                ``"cartpole@champion"``) whose bare initialisation is to act. An alias costs a second request:
                in a loop, resolve it once with ``client.versions.get``.
            observations: [B, O], or [O] for one, in environment units.
            deterministic: The likeliest action (True) or one drawn from the policy's distribution.
            seed: Makes drawn actions repeatable.

        Raises:
            InvalidRequest: If an observation has the wrong size.
            ValueError: If an observation holds a NaN or an infinity.
        """
        batch = np.asarray(observations, dtype=np.float64)
        body = without_none(
            observations=batch[None] if batch.ndim <= 1 else batch, deterministic=deterministic, seed=seed
        )
        response = self._transport.request("POST", f"{self._actor_path(actor)}:act", body=body)
        return _action(json_of(response))

    def rollout(
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
        return read_rollout(json_of(self._roll_out(policy, "json", query, ROLLOUT_S)))

    def video(
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
        content = self._roll_out(policy, chosen, query, VIDEO_S).content
        if to is not None:
            Path(to).write_bytes(content)
        return content

    def _roll_out(
        self, policy: str | Policy | Adaptation, format: str, query: Mapping[str, Any], answer_within_s: float
    ) -> httpx.Response:
        return self._transport.request(
            "GET",
            f"/v1/policies/{segment(_policy_of(policy))}/rollout",
            query={"format": format, **query},
            headers={"Accept": f"{MEDIA_TYPES[format]}, application/problem+json"},
            answer_within_s=answer_within_s,
        )

    def _actor_path(self, actor: str | Policy | Adaptation | Version) -> str:
        if isinstance(actor, Version) or (isinstance(actor, str) and ("/" in actor or "@" in actor)):
            return self._versions.path(actor)
        return f"/v1/policies/{segment(_policy_of(actor))}"


def _policy_of(actor: str | Policy | Adaptation) -> str:
    if not isinstance(actor, Adaptation):
        return id_of(actor)
    if actor.policy is None:
        raise HeadstartError(f"adaptation {actor.id} has no policy: it is {actor.state}")
    return actor.policy


def _action(answer: Any) -> Action:
    if not isinstance(answer, Mapping) or "actions" not in answer:
        raise InvalidResponse("the answer has no 'actions'")
    values = answer.get("values")
    return Action(
        actions=np.asarray(answer["actions"]),
        log_probs=np.asarray(answer.get("log_probs", ()), dtype=np.float64),
        values=None if values is None else np.asarray(values, dtype=np.float64),
        policy=answer.get("policy"),
        raw=answer,
    )
