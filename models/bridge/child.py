"""The program of a process that steps environments for another process.

It answers one message at a time and ends with the other side. Whatever an environment raises is sent back; before each
call of an environment it notes in shared memory which episode that is, so that the other side can say whose environment
hangs or took the process with it.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import fcntl
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final, final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from models.bridge.filming import film
from models.bridge.making import Failed, close, describe, make
from models.bridge.spaces import Actions, InvalidObservation, flat_observation
from models.bridge.wire import Arrays, Connection, Gone, Message

IDLE_S: Final = 120.0
"""A process that is asked nothing for so long ends."""

MAX_KEPT: Final = 512
"""Environments that are kept for later episodes, beside those in use."""


@final
class Progress:
    """What another process can read of this one at any moment: two numbers in shared memory.

    Args:
        descriptor: A file of :attr:`SIZE` bytes.
    """

    SIZE: Final = 16

    def __init__(self, descriptor: int) -> None:
        self._numbers = memoryview(mmap.mmap(descriptor, self.SIZE)).cast("q")

    @property
    def place(self) -> int:
        """The episode whose environment is called, or was last; -1 for none."""
        return self._numbers[0]

    @property
    def calls(self) -> int:
        """How many calls were begun."""
        return self._numbers[1]

    def begin(self, place: int) -> None:
        """Note that the environment of an episode is about to be called."""
        self._numbers[0] = place
        self._numbers[1] += 1


@final
class _Episode:
    """An environment that an episode runs in, with what its spaces say."""

    def __init__(self, environment: gymnasium.Env[Any, Any]) -> None:
        self.environment = environment
        self._space = environment.observation_space
        self._actions = Actions(environment.action_space)

    def reset(self, seed: int) -> NDArray[np.float32]:
        observation, _ = self.environment.reset(seed=seed)
        return flat_observation(self._space, observation)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool]:
        observation, reward, terminated, truncated, _ = self.environment.step(self._actions.decode(action))
        reward = float(reward)
        if not math.isfinite(reward):
            raise InvalidObservation(f"the reward is {reward}")
        return flat_observation(self._space, observation), reward, bool(terminated), bool(truncated)


@final
class _Stage:
    """The episodes of one rollout, and the environments that others left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._episodes: list[_Episode] = []
        self._keys: list[str] = []
        self._free: collections.OrderedDict[str, list[_Episode]] = collections.OrderedDict()

    def begin(self, configurations: list[dict[str, Any]], size: int, which: Any, seeds: Any) -> Arrays:
        """Begin an episode for each seed; their first observations ``[K, O]``."""
        for key, episode in zip(self._keys, self._episodes, strict=True):
            self._free.setdefault(key, []).append(episode)
        self._episodes, self._keys = [], []
        keys = [json.dumps(each, sort_keys=True) for each in configurations]
        first = np.empty((len(seeds), size), np.float32)
        for place, (configuration, seed) in enumerate(zip(which, seeds, strict=True)):
            key, stage = keys[configuration], "construction"
            self.progress.begin(place)
            try:
                kept = self._free.get(key)
                episode = kept.pop() if kept else _Episode(make(**configurations[configuration]))
                stage = "reset"
                first[place] = _sized(episode.reset(int(seed)), size)
            except BaseException as error:
                raise _at(place, error, stage) from error
            self._episodes.append(episode)
            self._keys.append(key)
        self._forget(set(keys))
        return [first]

    def step(self, size: int, places: Any, actions: Any) -> Arrays:
        """Step the episodes at these places: observations, rewards, and whether they terminated or were truncated."""
        count = len(places)
        observations, rewards = np.empty((count, size), np.float32), np.empty(count, np.float64)
        terminated, truncated = np.empty(count, np.bool_), np.empty(count, np.bool_)
        begin, episodes = self.progress.begin, self._episodes
        for i, place in enumerate(places.tolist()):
            begin(place)
            try:
                observation, rewards[i], terminated[i], truncated[i] = episodes[place].step(actions[i])
                observations[i] = _sized(observation, size)
            except BaseException as error:
                raise _at(place, error, "step") from error
        return [observations, rewards, terminated, truncated]

    def renew(self, size: int, places: Any, seeds: Any) -> Arrays:
        """Begin new episodes at these places, in the environments that are there; their first observations."""
        first = np.empty((len(places), size), np.float32)
        for i, (place, seed) in enumerate(zip(places.tolist(), seeds.tolist(), strict=True)):
            self.progress.begin(place)
            try:
                first[i] = _sized(self._episodes[place].reset(seed), size)
            except BaseException as error:
                raise _at(place, error, "reset") from error
        return [first]

    def _forget(self, used: set[str]) -> None:
        """Close environments that were not used last, until few enough are kept."""
        kept = sum(map(len, self._free.values()))
        for key in [key for key in self._free if key not in used]:
            if kept <= MAX_KEPT:
                return
            for episode in self._free.pop(key):
                close(episode.environment)
                kept -= 1


class _FailedAt(Exception):
    def __init__(self, place: int, failure: Failed) -> None:
        super().__init__(failure.detail)
        self.place = place
        self.failure = failure


def _at(place: int, error: BaseException, stage: Any) -> _FailedAt:
    if isinstance(error, InvalidObservation):
        return _FailedAt(place, Failed(stage, str(error)))
    return _FailedAt(place, error if isinstance(error, Failed) else Failed.raised(stage, error))


def _sized(observation: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if len(observation) != size:
        raise InvalidObservation(f"the observation has {len(observation)} numbers, at first it had {size}")
    return observation


def _answer(stage: _Stage, message: Message) -> tuple[Mapping[str, Any], Arrays]:
    content, arrays = message
    try:
        if content["ask"] == "describe":
            stage.progress.begin(-1)
            return describe(content["module"], content["name"], content["arguments"])
        if content["ask"] == "begin":
            return {}, stage.begin(content["configurations"], content["size"], *arrays)
        if content["ask"] == "film":
            return {}, film(content, arrays, stage.progress.begin)
        if content["ask"] == "renew":
            return {}, stage.renew(content["size"], *arrays)
        return {}, stage.step(content["size"], *arrays)
    except Failed as failure:
        return _failure(-1, failure), ()
    except _FailedAt as error:
        return _failure(error.place, error.failure), ()


def _failure(place: int, failure: Failed) -> Mapping[str, Any]:
    return {"failed": {"stage": failure.stage, "place": place, "detail": failure.detail, "trace": failure.trace}}


def end_with(lifeline: int) -> None:
    """End this process when the other end of that pipe is closed, whatever this one is doing then."""
    if hasattr(fcntl, "F_SETSIG"):  # elsewhere a process that is busy ends after what it does
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it was closed before
        sys.exit(0)


def main(side: int, progress: int, lifeline: int) -> None:
    """Answer until the other side is gone.

    Args:
        side: Descriptor of the socket.
        progress: Descriptor of the file of :class:`Progress`.
        lifeline: Descriptor of a pipe whose other end closes with the other process.
    """
    end_with(lifeline)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()
    connection = Connection(socket.socket(fileno=side))
    stage = _Stage(Progress(progress))
    with contextlib.suppress(Gone):
        while connection.wait(IDLE_S):
            connection.send(*_answer(stage, connection.receive()))
