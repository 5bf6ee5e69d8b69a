"""Making a Gymnasium environment, and saying what a task can set of it."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

from models.bridge.spaces import Actions, UnsupportedSpace, flat_observation, flat_observation_space, named

Stage = Literal["id", "construction", "spaces", "reset", "step", "render", "missing"]
"""Where an environment failed; ``missing``: what it would draw with is not there."""

_LONGEST_TRACEBACK: Final = 4000
_LONGEST_TEXT: Final = 1000
_LONGEST_NAME: Final = 300

# What only a screen sees, and names of files of this machine.
_LEFT_OUT: Final = frozenset(
    {
        "render_mode",
        "render_fps",
        "width",
        "height",
        "camera_id",
        "camera_name",
        "default_camera_config",
        "max_geom",
        "visual_options",
        "xml_file",
        "max_episode_steps",
        "disable_env_checker",
    }
)


class Failed(Exception):
    """An environment that did not do what it should.

    Attributes:
        stage: Where.
        detail: What, in one line.
        trace: The traceback of what it raised; empty if it raised nothing.
    """

    def __init__(self, stage: Stage, detail: str, trace: str = "") -> None:
        super().__init__(detail)
        self.stage = stage
        self.detail = detail
        self.trace = trace

    @classmethod
    def raised(cls, stage: Stage, error: BaseException) -> Failed:
        """The failure that somebody's code raised, with its traceback from where it left this package."""
        here, frames = str(Path(__file__).parent), error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(here):
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        text = "".join(lines).strip()
        if len(text) > _LONGEST_TRACEBACK:
            text = f"...{text[-_LONGEST_TRACEBACK:]}"
        return cls(stage, traceback.format_exception_only(error)[-1].strip()[:_LONGEST_TEXT], text)


def make(module: str | None, name: str, arguments: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """An environment without a limit of time: the task's horizon is one.

    Args:
        module: What to import first: it registers the environment.
        name: Gymnasium's id.
        arguments: Keyword arguments of the environment.

    Raises:
        Failed: If there is none of that name, or making it raises.
    """
    try:
        if module is not None:
            importlib.import_module(module)
    except BaseException as error:
        raise Failed.raised("id", error) from error
    if name not in gymnasium.registry:
        raise Failed("id", f"Gymnasium knows no {name!r}" + (f" after importing {module}" if module else ""))
    try:
        return gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True, **arguments)
    except BaseException as error:
        raise Failed.raised("construction", error) from error


def describe(module: str | None, name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """What an environment made with these arguments is, seen by making one and beginning an episode.

    Returns:
        Its parameters, number of actions (``None`` where they are vectors), longest episode, whether it can draw
        itself, and the names of its class and spaces; and the bounds of flattened observations and of actions: lowest,
        highest, lowest, highest.

    Raises:
        Failed: If it cannot be used.
    """
    environment = make(module, name, arguments)
    try:
        try:
            low, high = flat_observation_space(environment.observation_space)
            actions = Actions(environment.action_space)
        except UnsupportedSpace as error:
            raise Failed("spaces", f"it has {error}") from error
        except BaseException as error:
            raise Failed.raised("spaces", error) from error
        try:
            observation, _ = environment.reset(seed=0)
            flat_observation(environment.observation_space, observation)
        except BaseException as error:
            raise Failed.raised("reset", error) from error
        spec = gymnasium.registry[name]
        content = {
            "parameters": _parameters(spec),
            "actions": actions.count,
            "max_episode_steps": spec.max_episode_steps,
            "renders": "rgb_array" in environment.metadata.get("render_modes", ()),
            "class": type(environment.unwrapped).__name__,
            "observation_space": named(environment.observation_space)[:_LONGEST_NAME],
            "action_space": named(environment.action_space)[:_LONGEST_NAME],
        }
        return content, [low, high, actions.low, actions.high]
    finally:
        close(environment)


def close(environment: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; what it raises then is no matter of anybody's."""
    try:
        environment.close()
    except BaseException:
        traceback.print_exc()


def _parameters(spec: EnvSpec) -> list[dict[str, Any]]:
    """Keyword arguments that a task can set: name, default, and kind of the default."""
    assert spec.entry_point is not None
    creator: Callable[..., Any] = (
        load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    )
    found: dict[str, tuple[Any, Any]] = {name: (value, None) for name, value in spec.kwargs.items()}
    try:
        signature = inspect.signature(creator)
    except (TypeError, ValueError):
        signature = inspect.Signature()
    for name, each in signature.parameters.items():
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            default = spec.kwargs.get(name, each.default)
            found[name] = (default, each.annotation)
    described = (_parameter(name, *value) for name, value in found.items() if name not in _LEFT_OUT)
    return [each for each in described if each is not None]


def _parameter(name: str, default: Any, annotation: Any) -> dict[str, Any] | None:
    """``None`` where a task has no way to write such a value."""
    kind: str | None
    if isinstance(default, bool):
        kind = "boolean"
    elif isinstance(default, int) and annotation not in (float, "float"):
        kind = "integer" if abs(default) < 2**53 else None
    elif isinstance(default, int | float):
        kind = "number" if math.isfinite(default) else None
    elif isinstance(default, str):
        kind = "text"
    else:
        kind = "json"
        try:
            default = json.dumps(default, allow_nan=False)
        except (TypeError, ValueError):
            kind = None
    if kind is None or (isinstance(default, str) and len(default) > _LONGEST_TEXT):
        return None
    return {"name": name, "default": default, "kind": kind}
