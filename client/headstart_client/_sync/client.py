# Generated from headstart_client/_async/client.py by: python client/generate_sync.py
"""The client: one object, one attribute for each noun."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, overload

from headstart_client._sync.access import ApiKeys
from headstart_client._sync.adaptations import Adaptations
from headstart_client._sync.evaluations import Evaluations
from headstart_client._sync.policies import Policies
from headstart_client._sync.registry import Aliases, Models, Versions
from headstart_client._sync.remote import RemoteAdaptations, RemotePolicy
from headstart_client._sync.runs import Runs
from headstart_client._sync.tasks import Environments, Families, Tasks
from headstart_client._sync.transport import Transport
from headstart_client.adaptations import Adaptation
from headstart_client.discovery import find_key, find_url
from headstart_client.errors import ConnectionFailed, Problem
from headstart_client.health import Health
from headstart_client.registry import VersionReference
from headstart_client.remote import ShowRemote
from headstart_client.stepping import GymEnvironment
from headstart_client.tasks import Task
from headstart_client.transport import Retry


class Client:
    """A Headstart service. Close it, or use it in a ``with`` statement; threads may share one.

    Args:
        base_url: Its address; else ``HEADSTART_URL``, else ``http://127.0.0.1:8000``.
        api_key: The key to send; else ``HEADSTART_API_KEY``, else, for a service on this machine only, the
            admin key in ``$HEADSTART_DATA/admin.key`` or ``./var/admin.key``.
        timeout_s: Longest silence of the service before a call fails, in seconds.
        retry: How often calls that may be repeated are.

    Attributes:
        environments: The models that tasks run in.
        families: Distributions over tasks.
        tasks: The tasks that are registered.
        runs: Background meta-training.
        models: Names with versions.
        versions: What runs produced.
        aliases: Movable pointers to versions.
        adaptations: Uses of a version on a task.
        policies: What acts.
        evaluations: What versions and policies are worth on tasks that they have not seen.
        api_keys: Who may do what.
        evaluate: Measure versions and policies: :meth:`Evaluations.create`.
        act: Ask for actions: :meth:`Policies.act`.

    Raises:
        ValueError: If the address is not one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        *,
        retry: Retry | None = None,
    ) -> None:
        url = find_url(base_url)
        transport = Transport(url, find_key(url, api_key), timeout_s, retry or Retry())
        self._transport = transport
        self.environments = Environments(transport)
        self.families = Families(transport)
        self.tasks = Tasks(transport)
        self.runs = Runs(transport)
        self.models = Models(transport)
        self.aliases = Aliases(transport)
        self.versions = Versions(transport, self.models, self.aliases)
        self.adaptations = Adaptations(transport)
        self.policies = Policies(transport, self.versions)
        self.evaluations = Evaluations(transport)
        self.api_keys = ApiKeys(transport)
        self.evaluate = self.evaluations.create
        self.act = self.policies.act

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    @overload
    def adapt(
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
    ) -> Adaptation: ...

    @overload
    def adapt(
        self,
        model: VersionReference | None,
        task: GymEnvironment,
        *,
        method: str | Mapping[str, Any] = "inner-loop",
        discount: float = 0.99,
        horizon: int | None = None,
        seed: int | None = None,
        ttl_seconds: int | None = None,
        policy: str | Mapping[str, Any] | None = None,
        local: bool = False,
        evaluation_episodes: int = 0,
        progress: bool | ShowRemote | None = None,
        **hyperparameters: Any,
    ) -> RemotePolicy: ...

    def adapt(
        self, model: VersionReference | None, task: str | Task | Mapping[str, Any] | GymEnvironment, **options: Any
    ) -> Adaptation | RemotePolicy:
        """Adapt a model to a task, or to an environment of gymnasium that is here.

        Args:
            model: What is adapted.
            task: A task of the service: see :meth:`Adaptations.create`. Or a ``gymnasium.Env`` or
                ``gymnasium.vector.VectorEnv``: see :meth:`RemoteAdaptations.create`.
            **options: Of the one or the other.

        Returns:
            The adaptation to a task; of an environment, the policy.
        """
        if isinstance(task, str | Task | Mapping):
            return self.adaptations.create(model, task, **options)
        return RemoteAdaptations(self._transport).create(model, task, **options)

    @property
    def url(self) -> str:
        """The address of the service."""
        return str(self._transport.url)

    def health(self) -> Health:
        """Whether the service answers, and can do its work; asked once, without a retry, and never raises."""
        return Health(live=self._is_well("/v2/health/live"), ready=self._is_well("/v2/health/ready"))

    def _is_well(self, path: str) -> bool:
        try:
            self._transport.request("GET", path, repeatable=False)
        except (ConnectionFailed, Problem):
            return False
        return True
