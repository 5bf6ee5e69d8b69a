"""Rollouts as films, drawn by Gymnasium's own renderers.

They draw in a process of their own (:mod:`models.bridge.filming`), whatever environment it is.
"""

from __future__ import annotations

from typing import Literal

from models.bridge.process import EpisodeFailed
from models.environments import Environment
from models.environments.bridge import EnvironmentFailed, ask_process
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import InvalidValue, Rollout

Format = Literal["gif", "mp4"]
"""Of a film: what every mail program shows, or H.264, which is smaller and keeps its colours."""


class CannotDraw(RuntimeError):
    """Something that drawing needs is missing on this machine; the message says what."""


def require_renderer(environment: Environment) -> None:
    """Refuse an environment that Gymnasium has no renderer for.

    Raises:
        InvalidValue: At ``/format``.
    """
    if not environment.renders:
        raise InvalidValue("/format", f"{environment.id} has no renderer; json gives its episodes as numbers")


def film(policy: Policy, tasks: TaskBatch, rollout: Rollout, format: Format) -> bytes:
    """The episodes of one task, one after another, each with a frame before its first step and one after every step.

    Frames follow each other at the environment's own rate; in a gif at 50 a second at most, which is as fast as
    browsers show one.

    Args:
        policy: Whose episodes they are.
        tasks: The task.
        rollout: Its episodes, collected with ``states``.
        format: Of the file.

    Returns:
        A gif or mp4 file.

    Raises:
        CannotDraw: If something is missing that drawing needs.
        EnvironmentFailed: If the environment fails to draw itself.
        InvalidValue: If it has no renderer.
    """
    require_renderer(tasks.environment)
    [task] = tasks.tasks
    scene = tasks.environment.scene(task, rollout, policy.to_environment(rollout.action))
    question = {
        "ask": "film",
        "format": format,
        "configuration": scene.configuration,
        "attributes": scene.attributes,
        "columns": scene.columns,
        "lengths": rollout.lengths[0].tolist(),
    }
    try:
        [content] = ask_process(question, scene.arrays)[1]
    except EpisodeFailed as error:
        failure = error.failure
        if failure.stage == "missing":
            raise CannotDraw(
                f"{task.environment} cannot be drawn here, something is missing that its renderer or the encoder "
                f"needs; the extra headstart[video] has all but the system's libraries: {failure.detail}"
            ) from error
        trace = f"\n{failure.trace}" if failure.trace else ""
        raise EnvironmentFailed(f"{tasks.describe(0)} cannot be drawn: {failure.detail}{trace}") from error
    return content.tobytes()
