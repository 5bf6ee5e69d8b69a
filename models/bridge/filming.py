"""Films of episodes: an environment is brought into one state after another and draws itself, and that is encoded.

It runs in the processes of :mod:`models.bridge.child`: what draws with SDL or OpenGL changes its whole process, and may
crash it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from models.bridge.making import Failed, close, make
from models.bridge.spaces import Actions
from models.bridge.wire import Arrays

Frame = NDArray[np.uint8]
"""A picture, [height, width, 3]: red, green, blue."""

_DEFAULT_RATE: Final = 30.0  # frames in a second, of an environment that does not say
_FASTEST_GIF: Final = 50.0  # its clock has hundredths of a second, and browsers slow down what shows a frame for one
_NOT_INSTALLED: Final = (ImportError, DependencyNotInstalled)
_NEEDS_OPENGL: Final = (
    "MuJoCo draws with OpenGL and without a screen: PyOpenGL and the system's libEGL (on Debian, libegl1 and "
    "libgl1-mesa-dri), or what the environment variable MUJOCO_GL names instead"
)
_HEADLESS: Final = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"} | (
    {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
)
_ENCODERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "mp4": {
        "codec": "libx264",
        "pix_fmt_out": "yuv420p",
        "output_params": ["-preset", "veryfast", "-crf", "20", "-threads", "1", "-movflags", "+faststart"],
    },
    # A palette for each frame: one for all would have to wait for the last, with all of them in memory.
    "gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "output_params": [
            *("-filter_complex", "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none"),
            *("-threads", "1"),
        ],
    },
}


def film(question: Mapping[str, Any], arrays: Arrays, begin: Callable[[int], None]) -> Arrays:
    """The film of episodes, one after another, as the bytes of a file.

    Args:
        question: ``format``: gif or mp4; ``configuration``: what :func:`models.bridge.making.make` takes; ``lengths``:
            steps of each episode, which has a frame more; ``attributes``: what the environment is to be given first.
            ``columns``: names of attributes that have a value for each frame; or ``None``: the episodes are played
            again.
        arrays: A value for each frame of each column; or a seed for each episode, and the actions of all.
        begin: Told the number of each frame before the environment is asked for it.

    Raises:
        Failed: If something that drawing needs is missing, or the environment does not draw.
    """
    try:
        return [_film(question, arrays, begin)]
    except Failed as failure:
        if failure.stage != "construction":
            raise
        # It was made before, without a renderer.
        detail = failure.detail
        if _is_mujoco(question["configuration"]):
            detail = f"{_NEEDS_OPENGL}: {detail}"
        raise Failed("missing", detail) from failure
    except _NOT_INSTALLED as error:
        raise Failed("missing", str(error)) from error
    except Exception as error:
        raise Failed.raised("render", error) from error


def _film(question: Mapping[str, Any], arrays: Arrays, begin: Callable[[int], None]) -> NDArray[np.uint8]:
    for name, value in _HEADLESS.items():
        os.environ.setdefault(name, value)
    configuration = question["configuration"]
    if _is_mujoco(configuration):
        _keep_no_log()
    environment = make(**configuration | {"arguments": configuration["arguments"] | {"render_mode": "rgb_array"}})
    try:
        if question["columns"] is None:
            moments = _played_again(environment, question["lengths"], *arrays)
        else:
            moments = _posed(environment, question, arrays)
        rate = float(environment.metadata.get("render_fps") or _DEFAULT_RATE)
        return _encode(_frames(environment, moments, begin, _is_mujoco(configuration)), rate, question["format"])
    finally:
        close(environment)


def _posed(environment: gymnasium.Env[Any, Any], question: Mapping[str, Any], arrays: Arrays) -> Iterator[None]:
    """Bring the environment into the state of each frame."""
    inner: Any = environment.unwrapped
    environment.reset(seed=0)
    for name, value in question["attributes"].items():
        setattr(inner, name, value)
    for row in zip(*arrays, strict=True):
        if _is_mujoco(question["configuration"]):
            inner.set_state(*row)
        else:
            for name, value in zip(question["columns"], row, strict=True):
                setattr(inner, name, value)
        yield


def _played_again(
    environment: gymnasium.Env[Any, Any], lengths: list[int], seeds: NDArray[np.int64], actions: NDArray[Any]
) -> Iterator[None]:
    """Play the episodes again, from their seeds, with their actions."""
    space = Actions(environment.action_space)
    edges = pairwise(accumulate(lengths, initial=0))
    for seed, (first, end) in zip(seeds.tolist(), edges, strict=True):
        environment.reset(seed=seed)
        yield
        for place in range(first, end):
            _, _, terminated, truncated, _ = environment.step(space.decode(actions[place]))
            if (terminated or truncated) and place + 1 < end:
                raise Failed("step", "played again, an episode ended sooner: it depends on more than its seed")
            yield


def _frames(
    environment: gymnasium.Env[Any, Any], moments: Iterator[None], begin: Callable[[int], None], with_opengl: bool
) -> Iterator[Frame]:
    for number, _ in enumerate(moments):
        begin(number)
        try:
            frame = environment.render()
        except Exception as error:
            if number == 0 and with_opengl:
                raise Failed("missing", f"{_NEEDS_OPENGL}: {type(error).__name__}: {error}") from error
            raise
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise Failed("render", f"its renderer gave {type(frame).__name__}, no picture of red, green and blue")
        yield frame


def _is_mujoco(configuration: Mapping[str, Any]) -> bool:
    spec = gymnasium.registry.get(configuration["name"])
    return spec is not None and str(spec.entry_point).startswith("gymnasium.envs.mujoco.")


def _keep_no_log() -> None:
    """MuJoCo appends its warnings, as of an outdated word in a model, to a file in the working directory."""
    try:
        import mujoco
    except Exception as error:  # it looks for OpenGL then, where it is told which
        raise Failed.raised("construction", error) from error
    mujoco.set_mju_user_warning(lambda _: None)


def _encode(frames: Iterator[Frame], rate: float, kind: str) -> NDArray[np.uint8]:
    # Not at the top: most of these processes never film.
    from imageio_ffmpeg import write_frames

    first = _even(next(frames))
    height, width, _ = first.shape
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"film.{kind}")
        rate = min(rate, _FASTEST_GIF) if kind == "gif" else rate
        options = {"fps": rate, "macro_block_size": 1, "quality": None, "ffmpeg_log_level": "error"}
        writer = write_frames(file, (width, height), **options, **_ENCODERS[kind])
        writer.send(None)
        try:
            for frame in chain([first], map(_even, frames)):
                if frame.shape != first.shape:
                    raise Failed("render", f"its pictures change their size, from {first.shape} to {frame.shape}")
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()
        content = file.read_bytes() if file.exists() else b""
    if not content:
        raise Failed("render", "the encoder wrote nothing")
    return np.frombuffer(content, np.uint8)


def _even(frame: Frame) -> Frame:
    """The frame with even numbers of rows and columns, the last one doubled: H.264 halves the resolution of colours."""
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else frame
