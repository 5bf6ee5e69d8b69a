"""Any Gymnasium environment as an environment of tasks.

What stands behind it runs in processes of its own (:mod:`models.bridge`): somebody's code can raise, hang or crash
there, and all that comes of it is an error with the task's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, final

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from models.bridge.making import Failed
from models.bridge.process import EpisodeFailed, Pool, Process
from models.bridge.wire import Arrays, Message
from models.environments.base import Environment, Parameter, Scene, Simulation, pointer_to, shown
from models.types import InvalidValue, ParameterValue, Rollout, Task, canonical_json

if TYPE_CHECKING:
    from models.tasks import TaskBatch

DEFAULT_TIMEOUT_S: Final = 60.0
"""How long one call of an environment may take, where nobody says otherwise."""

_DEFAULT_HORIZON: Final = 1000
_LONGEST_HORIZON: Final = 100_000
_EPISODES_PER_PROCESS: Final = 4
_KNOWN: Final = 16_384
_ID: Final = re.compile(r"(?:(?P<module>[A-Za-z_][\w.]{0,199}):)?(?P<name>[\w:./-]{1,199})", re.ASCII)


class EnvironmentFailed(RuntimeError):
    """A bridged environment that raised, hung, crashed or broke its own spaces, with the task, the step and why."""


@dataclass
class _Bridge:
    """What all bridged environments of this process share."""

    modules: frozenset[str] = frozenset()
    timeout_s: float = DEFAULT_TIMEOUT_S
    pool: Pool = field(default_factory=Pool)


_BRIDGE: Final = _Bridge()


def configure(modules: Iterable[str], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Set, for this process, what may be imported and how long one call of an environment may take.

    Args:
        modules: Names of modules, each exactly as it stands before the colon of an environment's id.
        timeout_s: Above 0.
    """
    if _BRIDGE.modules != frozenset(modules):
        # What was imported under other rules is not used again.
        _described.cache_clear()
        _BRIDGE.pool.close()
    _BRIDGE.modules, _BRIDGE.timeout_s = frozenset(modules), timeout_s


def find_bridged(id_: str) -> BridgedEnvironment | None:
    """Gymnasium's own environment of that id, or ``module:Id`` where that module may be imported.

    Returns:
        ``None`` if it is neither.

    Raises:
        InvalidValue: At ``/environment``, if its module may not be imported, or if it cannot be used.
    """
    match = _ID.fullmatch(id_)
    if match is None:
        return None
    module, name = match["module"], match["name"]
    if module is None:
        spec = gymnasium.registry.get(name)
        if spec is None or not str(spec.entry_point).startswith("gymnasium.envs."):
            return None
    elif module not in _BRIDGE.modules:
        allowed = ", ".join(sorted(_BRIDGE.modules)) or "none"
        detail = f"the module {shown(module)} must not be imported: HEADSTART_ENVIRONMENT_MODULES allows {allowed}"
        raise InvalidValue("/environment", detail)
    try:
        return _described(module, name, "{}")
    except EpisodeFailed as error:
        raise InvalidValue("/environment", f"{id_} {_said(error.failure)}") from error


@lru_cache(_KNOWN)
def _described(module: str | None, name: str, arguments: str) -> BridgedEnvironment:
    """The environment made with these arguments (canonical JSON of those that are not its defaults)."""
    question = {"ask": "describe", "module": module, "name": name, "arguments": json.loads(arguments)}
    content, bounds = ask_process(question)
    environment = BridgedEnvironment(module, name, arguments, content, *bounds)
    if arguments != "{}":
        environment.share(_described(module, name, "{}"))
    return environment


def ask_process(question: Mapping[str, Any], arrays: Arrays = ()) -> Message:
    """The answer of one process to one question (:mod:`models.bridge.child`).

    Raises:
        EpisodeFailed: If an environment failed, took longer than is allowed, or ended the process.
    """
    [process] = _BRIDGE.pool.take(1)
    kept = False
    try:
        process.ask(question, arrays)
        answer = process.answer(_BRIDGE.timeout_s)
        kept = True
    except EpisodeFailed as error:
        kept = error.failure.stage != "step"
        raise
    finally:
        if kept:
            _BRIDGE.pool.give_back([process], _most_processes())
        else:
            process.close()
    return answer


def _most_processes() -> int:
    return max(1, torch.get_num_threads())


def _said(failure: Failed) -> str:
    """A failure before any episode, in words."""
    what = {
        "id": "cannot be imported",
        "construction": "cannot be made",
        "spaces": "cannot be used",
        "reset": "cannot begin an episode",
        "step": "failed",
        "render": "cannot be drawn",
        "missing": "cannot be drawn here",
    }[failure.stage]
    return f"{what}: {failure.detail}" + (f"\n{failure.trace}" if failure.trace else "")


@final
class BridgedEnvironment(Environment):
    """A Gymnasium environment as it is when it is made with certain arguments. :func:`find_bridged` makes it."""

    def __init__(
        self,
        module: str | None,
        name: str,
        arguments: str,
        content: Mapping[str, Any],
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        lowest_action: NDArray[np.float32],
        highest_action: NDArray[np.float32],
    ) -> None:
        self._module = module
        self._name = name
        self._json = frozenset(each["name"] for each in content["parameters"] if each["kind"] == "json")
        self.id = name if module is None else f"{module}:{name}"
        self.title = content["class"]
        self.parameters = tuple(_parameter(each) for each in content["parameters"])
        self.observation_space = Box(low, high)
        count = content["actions"]
        self.action_space: Box | Discrete[np.int64] = (
            Box(lowest_action, highest_action) if count is None else Discrete(count)
        )
        self._renders: bool = content["renders"]
        self.default_horizon = min(content["max_episode_steps"] or _DEFAULT_HORIZON, _LONGEST_HORIZON)
        actions = f"{len(lowest_action)} numbers" if count is None else f"ids 0 to {count - 1}"
        made = "" if arguments == "{}" else f", made with {arguments}"
        self.description = (
            f"The Gymnasium environment {self.id}, through the bridge{made}. A policy sees observations of "
            f"{content['observation_space']} flattened to {len(low)} numbers (ids are one-hot) and takes actions of "
            f"{content['action_space']} as {actions}. Parameters are keyword arguments of {self.title}."
        )

    def share(self, other: BridgedEnvironment) -> None:
        """Keep one of each equal space and schema: tasks without number may be made with arguments of their own."""
        if self.parameters == other.parameters:
            self.parameters = other.parameters
        if self.observation_space == other.observation_space:
            self.observation_space = other.observation_space
        if self.action_space == other.action_space:
            self.action_space = other.action_space

    @override
    def shaped(self, parameters: Mapping[str, ParameterValue]) -> BridgedEnvironment:
        arguments = self.arguments(parameters)
        try:
            return _described(self._module, self._name, canonical_json(arguments))
        except EpisodeFailed as error:
            where = ["parameters", *arguments] if len(arguments) == 1 else ["parameters"]
            pointer = pointer_to(*where) if arguments else "/environment"
            values = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
            detail = f"{self.id} with {values or 'its defaults'} {_said(error.failure)}"
            raise InvalidValue(pointer, detail) from error

    def arguments(self, parameters: Mapping[str, ParameterValue]) -> dict[str, Any]:
        """Keyword arguments of the environment: those of a task's parameters that are not their defaults.

        Raises:
            InvalidValue: At ``/parameters/<name>``, if a text that holds JSON does not.
        """
        values: dict[str, Any] = {}
        for each in self.parameters:
            value = parameters.get(each.name, each.default)
            if value == each.default:
                continue
            values[each.name] = _read_json(each.name, value) if each.name in self._json else value
        return values

    def configuration(self, parameters: Mapping[str, ParameterValue]) -> dict[str, Any]:
        """What a process needs to make the environment of a task."""
        return {"module": self._module, "name": self._name, "arguments": self.arguments(parameters)}

    @property
    @override
    def renders(self) -> bool:
        return self._renders

    @override
    def scene(self, task: Task, rollout: Rollout, action: Tensor) -> Scene:
        assert rollout.begun is not None
        steps = [action[0, :length, b] for b, length in enumerate(rollout.lengths[0].tolist())]
        arrays = (_seeds(rollout.begun), torch.cat(steps).cpu().numpy())
        return Scene(self.configuration(task.parameters), {}, None, arrays)

    @override
    def simulate(self, rng: Tensor, tasks: TaskBatch) -> BridgedSimulation:
        return BridgedSimulation(self, rng, tasks)


def _parameter(described: Mapping[str, Any]) -> Parameter:
    name, default, kind = described["name"], described["default"], described["kind"]
    description = "Keyword argument of the environment."
    if kind == "json":
        kind, description = "text", "Keyword argument of the environment, written as JSON."
    return Parameter(name, float(default) if kind == "number" else default, description=description, kind=kind)


def _read_json(name: str, value: object) -> Any:
    try:
        return json.loads(str(value), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        detail = f"{name} must be a text that holds JSON, such as null or [1, 2], not {shown(value)}: {error}"
        raise InvalidValue(pointer_to("parameters", name), detail) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


@dataclass(frozen=True)
class _Share:
    """The episodes that one process steps: those from ``first`` to before ``end``, task after task."""

    process: Process
    first: int
    end: int


@final
class BridgedSimulation(Simulation):
    """Episodes that other processes step.

    An episode is seeded with its key, and nothing else that it depends on comes from here, so that it is the same in
    whatever process and beside whatever others it runs; an environment that draws from anything but its own
    ``np_random`` has no such promise.

    Raises:
        EnvironmentFailed: If an episode cannot begin.
    """

    def __init__(self, environment: BridgedEnvironment, rng: Tensor, tasks: TaskBatch) -> None:
        self._tasks = tasks
        self._shape = tuple(rng.shape)
        self._size = environment.observation_size
        self._now = "the beginning"
        self._rewards: list[Tensor] = []
        count = rng.numel()
        used = min(_most_processes(), max(1, count // _EPISODES_PER_PROCESS))
        edges = [count * i // used for i in range(used + 1)]
        self._observations = np.empty((count, self._size), np.float32)
        self._shares = [_Share(*share) for share in zip(_BRIDGE.pool.take(used), edges[:-1], edges[1:], strict=True)]
        # A policy's thread that waits for its next product spins, on the core that a process wants to step with.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._begin(environment, rng)
        except BaseException:
            self.end(whole=False)
            raise
        self.first_observation = self._observation()

    @override
    def step(self, action: Tensor, rng: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._now = f"step {len(self._rewards)}"
        actions = action.flatten(0, 1).cpu().numpy()
        living = alive.flatten().cpu().numpy()
        rewards = np.zeros(len(living))
        terminated, truncated = np.zeros(len(living), np.bool_), np.zeros(len(living), np.bool_)
        asked = []
        for share in self._shares:
            places = np.flatnonzero(living[share.first : share.end])
            if len(places):
                rows = places + share.first
                share.process.ask({"ask": "step", "size": self._size}, [places, actions[rows]])
                asked.append((share, rows))
        self._observations = self._observations.copy()
        results: list[NDArray[Any]] = [self._observations, rewards, terminated, truncated]
        for share, rows in asked:
            for result, answer in zip(results, self._answer(share), strict=True):
                result[rows] = answer
        self._rewards.append(self._tensor(rewards))
        terminal = torch.from_numpy(terminated).reshape(self._shape).to(alive.device)
        over = torch.from_numpy(truncated | terminated).reshape(self._shape).to(alive.device)
        return self._observation(), terminal, over

    @override
    def rewards(self, action: Tensor) -> Tensor:
        return torch.stack(self._rewards[: action.shape[1]], 1)

    @override
    def states(self, steps: int) -> None:
        return None

    @override
    def renew(self, rng: Tensor, over: Tensor) -> Tensor:
        self._now = "the beginning of a further episode"
        ended, seeds = over.flatten().cpu().numpy(), _seeds(rng)
        asked = []
        for share in self._shares:
            places = np.flatnonzero(ended[share.first : share.end])
            if len(places):
                rows = places + share.first
                share.process.ask({"ask": "renew", "size": self._size}, [places, seeds[rows]])
                asked.append((share, rows))
        self._observations = self._observations.copy()
        for share, rows in asked:
            [self._observations[rows]] = self._answer(share)
        return self._observation()

    @override
    def forget(self) -> None:
        self._rewards = []

    @override
    def end(self, whole: bool) -> None:
        torch.set_num_threads(self._threads)
        processes = [share.process for share in self._shares]
        self._shares = []
        if whole:
            _BRIDGE.pool.give_back(processes, _most_processes())
            return
        for process in processes:
            process.close()

    def _begin(self, environment: BridgedEnvironment, rng: Tensor) -> None:
        episodes = self._shape[1]
        configurations = [environment.configuration(task.parameters) for task in self._tasks.tasks]
        seeds = _seeds(rng)
        which = np.repeat(np.arange(len(configurations)), episodes)
        for share in self._shares:
            mine = slice(share.first, share.end)
            used = slice(int(which[share.first]), int(which[share.end - 1]) + 1)
            share.process.ask(
                {"ask": "begin", "configurations": configurations[used], "size": self._size},
                [which[mine] - used.start, seeds[mine]],
            )
        for share in self._shares:
            [self._observations[share.first : share.end]] = self._answer(share)

    def _answer(self, share: _Share) -> list[NDArray[Any]]:
        try:
            return share.process.answer(_BRIDGE.timeout_s)[1]
        except EpisodeFailed as error:
            task = (share.first + max(0, error.place)) // self._shape[1]
            trace = f"\n{error.failure.trace}" if error.failure.trace else ""
            detail = f"the environment of {self._tasks.describe(task)} failed at {self._now}: {error.failure.detail}"
            raise EnvironmentFailed(detail + trace) from error

    def _observation(self) -> Tensor:
        return self._tensor(self._observations)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        like = self._tasks.discount
        return torch.from_numpy(array).to(like).reshape(*self._shape, *array.shape[1:])


def _seeds(rng: Tensor) -> NDArray[np.int64]:
    """Of keys, 32 bits each, flat: what any generator takes as a seed."""
    seeds: NDArray[np.int64] = ((rng >> 32) & 0xFFFFFFFF).flatten().cpu().numpy()
    return seeds
