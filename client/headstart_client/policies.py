"""Policies: what acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart_client.adaptations import Adaptation
from headstart_client.downloads import download
from headstart_client.errors import HeadstartError, InvalidResponse
from headstart_client.registry import Version, Versions
from headstart_client.transport import Transport, json_of, segment
from headstart_client.wire import File, Resource, id_of, parse, without_none


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
        name = policy.policy if isinstance(policy, Adaptation) else id_of(policy)
        if name is None:
            raise HeadstartError(f"adaptation {id_of(policy)} has no policy")
        return parse(Version, self._transport.create(f"/v1/policies/{segment(name)}:publish", {"model": model}))

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

    def _actor_path(self, actor: str | Policy | Adaptation | Version) -> str:
        if isinstance(actor, Version) or (isinstance(actor, str) and ("/" in actor or "@" in actor)):
            return self._versions.path(actor)
        if isinstance(actor, Adaptation):
            if actor.policy is None:
                raise HeadstartError(f"adaptation {actor.id} has no policy: it is {actor.state}")
            actor = actor.policy
        return f"/v1/policies/{segment(id_of(actor))}"


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
