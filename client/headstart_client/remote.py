"""Adapting to the user's own environment: what is asked for, what is brought, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from headstart_client.collecting import CollectedEpisode
from headstart_client.display import FRAME_S, PLAIN_EVERY_S, is_terminal
from headstart_client.policies import Action
from headstart_client.progress import amount, duration, figure
from headstart_client.spaces import Spaces

LARGEST_UPLOAD = 150_000
"""Numbers in one request: some 3 MB, of the 10 that a service takes where its operator has not changed that."""

MOST_PIECES = 1000
"""Pieces that a service takes in one request."""

MOST_OBSERVATIONS = 500
"""Observations in one message of a stream: half of what a service takes."""

LARGEST_MESSAGE = 40_000
"""Numbers in one message of a stream, some 0.8 MB: it takes 1 MiB."""


@dataclass(frozen=True)
class RemoteProgress:
    """How far an adaptation to the user's own environment is.

    Attributes:
        adaptation: Its id.
        state: ``collecting`` while episodes are rolled out, or as the service tells it.
        method: Name of its method.
        revision: Of the policy that acts.
        fraction: Of its budget that was learned from, in [0, 1].
        episodes: Complete ones, those that were not brought yet included.
        environment_steps: In those.
        mean_return: Mean undiscounted return of the newest episodes; ``None`` before there are any.
        seconds: Since it began.
    """

    adaptation: str
    state: str
    method: str
    revision: int
    fraction: float
    episodes: int
    environment_steps: int
    mean_return: float | None
    seconds: float


ShowRemote = Callable[[RemoteProgress], None]


def remote_task(spaces: Spaces, discount: float, horizon: int) -> dict[str, Any]:
    """The task of an adaptation whose environment is with the client."""
    return {
        "remote": {
            "observation_space": spaces.observation_space,
            "action_space": spaces.action_space,
            "discount": discount,
            "horizon": horizon,
        }
    }


def joined(actions: Sequence[Action]) -> Action:
    """Actions on observations that were asked for in turn, as those on all of them."""
    drawn = [each.policy_actions for each in actions if each.policy_actions is not None]
    values = [each.values for each in actions if each.values is not None]
    return Action(
        actions=np.concatenate([each.actions for each in actions]),
        log_probs=np.concatenate([each.log_probs for each in actions]),
        values=np.concatenate(values) if len(values) == len(actions) else None,
        policy=actions[0].policy,
        revision=actions[0].revision,
        policy_actions=np.concatenate(drawn) if len(drawn) == len(actions) else None,
    )


def uploads(episodes: Sequence[CollectedEpisode], name: str) -> Iterator[list[dict[str, Any]]]:
    """Episodes as they are brought, in as many requests as their size wants.

    Args:
        episodes: In any order.
        name: What their ids begin with.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for episode in episodes:
        for piece, numbers in _pieces(episode, name):
            if batch and (size + numbers > LARGEST_UPLOAD or len(batch) == MOST_PIECES):
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += numbers
    if batch:
        yield batch


def _pieces(episode: CollectedEpisode, name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The pieces of an episode, and how many numbers each has."""
    others = [each for each in (episode.actions, episode.policy_actions) if each is not None]
    per_step = episode.observations.shape[1] + sum(each[0].size for each in others) + 2
    steps = max(1, LARGEST_UPLOAD // per_step)
    for start in range(0, len(episode), steps):
        end = min(start + steps, len(episode))
        is_last = end == len(episode)
        piece: dict[str, Any] = {
            "id": f"{name}/{episode.number}",
            "revision": episode.revision,
            "observations": episode.observations[start : end + 1],
            "actions": episode.actions[start:end],
            "rewards": episode.rewards[start:end],
            "log_probs": episode.log_probs[start:end],
            "terminated": is_last and episode.terminated,
            "truncated": is_last and episode.truncated,
            "offset": start,
        }
        if episode.policy_actions is not None:
            piece["policy_actions"] = episode.policy_actions[start:end]
        yield piece, (end - start) * per_step


def choose_show(wanted: bool | ShowRemote | None, stream: TextIO) -> ShowRemote | None:
    """What shows how far an adaptation is.

    Args:
        wanted: A function of the caller's; or ``None``: a line on ``stream`` where that is a terminal; ``True``: lines
            elsewhere too; ``False``: nothing.
        stream: Where to write.
    """
    if callable(wanted):
        return wanted
    terminal = is_terminal(stream)
    if wanted is False or (wanted is None and not terminal):
        return None
    return _RemoteLine(stream, terminal).show


class _RemoteLine:
    """One line that is drawn over on a terminal; elsewhere a line at every revision and every ten seconds."""

    def __init__(self, stream: TextIO, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self._shown: tuple[int, str] | None = None
        self._written_s = 0.0

    def show(self, progress: RemoteProgress) -> None:
        """Bring it up to date, if it is time."""
        now_s, key = time.monotonic(), (progress.revision, progress.state)
        if key == self._shown and now_s - self._written_s < (FRAME_S if self._terminal else PLAIN_EVERY_S):
            return
        self._shown, self._written_s = key, now_s
        line = describe(progress)
        if not self._terminal:
            line += "\n"
        else:
            line = f"\r{line}\x1b[K" + ("" if progress.state in ("collecting", "queued", "running") else "\n")
        self._stream.write(line)
        self._stream.flush()


def describe(progress: RemoteProgress) -> str:
    """How far an adaptation is, in one line."""
    words = [
        f"{progress.method} {progress.fraction:4.0%}",
        f"revision {progress.revision}",
        f"{progress.episodes} episodes",
        f"{amount(progress.environment_steps)} steps",
    ]
    if progress.mean_return is not None:
        words.append(f"return {figure(progress.mean_return)}")
    passed = duration(progress.seconds)
    words.append(f"{passed} passed" if progress.state == "collecting" else f"{progress.state} after {passed}")
    return "  ".join(words)
