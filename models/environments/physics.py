"""States of articulated bodies, many at once, stepped by MuJoCo on several threads.

Needs the extra ``headstart[mujoco]``. What a state is, and that stepping it alone or among others, on one thread or
on many, gives the same bits, is :class:`Physics`'s business; what it means is :mod:`models.environments.locomotion`'s.

Source: Todorov, Erez & Tassa 2012, "MuJoCo: a physics engine for model-based control".
"""

from __future__ import annotations

import copy
import math
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from threading import Lock
from typing import Final, Protocol, final

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MODELS_KEPT: Final = 256  # an eighth of a megabyte each
_STEPPERS_KEPT: Final = 8  # as many shapes of (tasks, episodes) as a run with its evaluations goes through
_FIELDS: Final = ("qpos", "qvel", "qacc_warmstart")
_STATE: Final = int(
    mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL | mujoco.mjtState.mjSTATE_WARMSTART  # in this order
)
_STATE_AND_CONTROL: Final = _STATE | int(mujoco.mjtState.mjSTATE_CTRL)


def _ignore(warning: str) -> None:
    """MuJoCo would append every warning, say of a body that flew apart, to a file in the working directory."""


if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(_ignore)


@final
class Physics:
    """One kind of body: its states go in, and the states ``frame_skip`` steps of the engine later come out.

    A state is, in float64, the positions, the velocities and the accelerations that the constraint solver starts
    from: with all three, what follows equals a simulation that was never interrupted, bit for bit. Where contacts
    are asked for, a state also has the torso's place in the plane (2) and the external forces on every body but the
    world (6 each), both as the engine left them: of the last evaluation of the dynamics, not of the new positions.
    A state that diverges is put back to the engine's initial one, as in Gymnasium.

    Args:
        xml: File name of the model among Gymnasium's.
        frame_skip: Steps of the engine for one action.
        scaled: Fields of the compiled model that ``factors`` multiply, in that order; ``gravity`` is one.
        contacts: Whether states have the torso's place and the contact forces.
    """

    def __init__(self, xml: str, frame_skip: int, scaled: tuple[str, ...], contacts: bool) -> None:
        self._base = _compile(xml)
        self._scratch = mujoco.MjData(self._base)
        self._frame_skip = frame_skip
        self._scaled = scaled
        self._make: type[_Native | _WithContacts] = _WithContacts if contacts else _Native
        self._models: OrderedDict[tuple[float, ...], mujoco.MjModel] = OrderedDict()
        self._idle: OrderedDict[tuple[object, ...], _Stepper] = OrderedDict()
        self._lock = Lock()

    def advance(self, state: Array, control: Array, factors: Array, moving: NDArray[np.bool_]) -> Array:
        """The states that follow, on as many threads as torch uses.

        Args:
            state: [..., S].
            control: [..., A], of each actuator.
            factors: What to multiply each quantity of ``scaled`` with; its leading axes broadcast against the states'.
            moving: [...], which states to step; the others stay as they are.
        """
        axes = state.shape[:-1]
        key = (torch.get_num_threads(), axes, factors.shape, factors.tobytes())
        # Two threads of one process may step the same tasks: whoever finds nothing idle builds its own.
        with self._lock:
            stepper = self._idle.pop(key, None)
        if stepper is None:
            each = np.broadcast_to(factors, (*axes, len(self._scaled))).reshape(-1, len(self._scaled))
            models = [self.model(tuple(row)) for row in each.tolist()]
            stepper = self._make(models, torch.get_num_threads(), self._frame_skip)
        rows = math.prod(axes)
        after = stepper(state.reshape(rows, -1), control.reshape(rows, -1), moving.reshape(rows))
        with self._lock:
            self._idle[key] = stepper
            if len(self._idle) > _STEPPERS_KEPT:
                self._idle.popitem(last=False)
        return after.reshape(state.shape)

    def model(self, factors: tuple[float, ...]) -> mujoco.MjModel:
        """The compiled model whose scaled quantities are multiplied so; compiled once."""
        if all(factor == 1 for factor in factors):
            return self._base
        with self._lock:
            model = self._models.pop(factors, None)
            if model is None:
                model = self._compile_scaled(factors)
            self._models[factors] = model
            if len(self._models) > _MODELS_KEPT:
                self._models.popitem(last=False)
        return model

    def _compile_scaled(self, factors: tuple[float, ...]) -> mujoco.MjModel:
        model = copy.copy(self._base)
        for name, factor in zip(self._scaled, factors, strict=True):
            quantity = model.opt.gravity if name == "gravity" else getattr(model, name)
            quantity *= factor
        # What the engine derives from masses and inertias, as the mean resistance to a contact, follows them.
        mujoco.mj_setConst(model, self._scratch)
        return model


class _Stepper(Protocol):
    def __call__(self, state: Array, control: Array, moving: NDArray[np.bool_]) -> Array:
        """The states [R, S] that follow."""


@final
class _Native:
    """Rows of states on the engine's own threads."""

    def __init__(self, models: Sequence[mujoco.MjModel], threads: int, frame_skip: int) -> None:
        self._batch = Batch(models[0], len(models), threads)
        if any(model is not models[0] for model in models):
            self._batch.set_models(models)
        self._fields = [self._batch.bind(name) for name in _FIELDS]
        self._control = self._batch.bind("ctrl")
        self._frame_skip = frame_skip

    def __call__(self, state: Array, control: Array, moving: NDArray[np.bool_]) -> Array:
        for field, place in self._places(state):
            field[:] = place
        self._control[:] = control
        self._batch.step(None if moving.all() else moving, nstep=self._frame_skip)
        after = np.empty_like(state)
        for field, place in self._places(after):
            place[:] = field
        return after

    def _places(self, state: Array) -> Iterator[tuple[Array, Array]]:
        start = 0
        for field in self._fields:
            yield field, state[:, start : start + field.shape[1]]
            start += field.shape[1]


@final
class _WithContacts:
    """Rows of states on Python threads: the engine's own forget the contacts, and its steps release the lock."""

    def __init__(self, models: Sequence[mujoco.MjModel], threads: int, frame_skip: int) -> None:
        self._models = models
        self._data = [mujoco.MjData(models[0]) for _ in range(threads)]
        self._executor = ThreadPoolExecutor(threads)
        self._frame_skip = frame_skip
        self._size = mujoco.mj_stateSize(models[0], _STATE)

    def __call__(self, state: Array, control: Array, moving: NDArray[np.bool_]) -> Array:
        before = np.concatenate((state[:, : self._size], control), 1)
        after = state.copy()
        rows = iter(np.flatnonzero(moving).tolist())  # shared: whoever is done takes the next row
        work = [self._executor.submit(self._step, data, rows, before, after) for data in self._data[1:]]
        self._step(self._data[0], rows, before, after)
        for each in work:
            each.result()
        return after

    def _step(self, data: mujoco.MjData, rows: Iterator[int], before: Array, after: Array) -> None:
        size = self._size
        for row in rows:
            model = self._models[row]
            mujoco.mj_setState(model, data, before[row], _STATE_AND_CONTROL)
            mujoco.mj_step(model, data, self._frame_skip)
            mujoco.mj_rnePostConstraint(model, data)
            mujoco.mj_getState(model, data, after[row, :size], _STATE)
            after[row, size : size + 2] = data.xpos[1, :2]
            after[row, size + 2 :] = data.cfrc_ext[1:].ravel()


def _compile(xml: str) -> mujoco.MjModel:
    """Gymnasium's model without what is only to be looked at, which is 96 % of its bytes."""
    # The path, not the package: gymnasium.envs.mujoco imports what it would draw with.
    text = files("gymnasium").joinpath("envs", "mujoco", "assets", xml).read_text()
    root = ElementTree.fromstring(text)
    for asset in root.findall("asset"):
        root.remove(asset)
    for geom in root.iter("geom"):
        geom.attrib.pop("material", None)
    compiler = root.find("compiler")
    # Deprecated in XML, at the cost of a warning; what is advised instead gives the same model.
    total_mass = None if compiler is None else compiler.attrib.pop("settotalmass", None)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    if total_mass is not None:
        mujoco.mj_setTotalmass(model, float(total_mass))
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
