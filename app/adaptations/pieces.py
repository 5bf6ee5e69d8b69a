"""Uploaded episodes: from a request's body, over checks in bulk, to exact bytes and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from safetensors.numpy import load, save

from app.bodies import read_struct
from app.decisions import Number
from app.errors import Invalid, PayloadTooLarge
from app.validation import MAX_ERRORS, FieldError, pointer_to
from models.remote import RemoteTask
from models.tasks import MAX_HORIZON

MAX_PIECES = 1000
"""Pieces of episodes in one request."""

EVENT_PREFIX = "event-"
"""What ids of episodes begin with that are a recorded action and its reward."""


_ROUNDING = 1e-5
_Row = list[Number]
_NAMES = ("observations", "actions", "rewards", "log_probs", "policy_actions")


class UploadedPiece(msgspec.Struct, forbid_unknown_fields=True):
    """An episode of T steps, or T consecutive steps of one."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="Of the episode, chosen by the client.")]
    revision: Annotated[int, msgspec.Meta(ge=0, lt=2**31, description="Of the policy that acted.")]
    observations: Annotated[list[_Row], msgspec.Meta(description="T + 1: before each step and after the last.")]
    actions: Annotated[
        list[int | _Row],
        msgspec.Meta(min_length=1, description="T, in environment units: whole numbers, or lists of numbers."),
    ]
    rewards: Annotated[list[Number], msgspec.Meta(description="T.")]
    log_probs: Annotated[
        list[Number] | None, msgspec.Meta(description="T, as `:act` gave them; null: worked out by the server.")
    ] = None
    policy_actions: Annotated[
        list[_Row] | None,
        msgspec.Meta(description="T continuous actions in policy units, as `:act` gives them when asked."),
    ] = None
    terminated: Annotated[bool, msgspec.Meta(description="The last step came to a terminal state.")] = False
    truncated: Annotated[bool, msgspec.Meta(description="The last step was cut off.")] = False
    offset: Annotated[
        int, msgspec.Meta(ge=0, le=MAX_HORIZON, description="Step of the episode that the piece starts at.")
    ] = 0


class Upload(msgspec.Struct, forbid_unknown_fields=True):
    """Episodes, whole or in pieces, in any order."""

    episodes: Annotated[list[UploadedPiece], msgspec.Meta(min_length=1)]


_DECODER = msgspec.json.Decoder(Upload)


def _documented() -> dict[str, Any]:
    """What the OpenAPI document says of a body that the framework does not read."""
    _, schemas = msgspec.json.schema_components([Upload])
    schema = schemas["Upload"]
    schema["properties"]["episodes"]["items"] = schemas["UploadedPiece"]
    episode = {
        "id": "actor-1/7",
        "revision": 0,
        "observations": [[0.01, 0.0, 0.02, 0.0], [0.01, 0.19, 0.02, -0.29], [0.014, 0.38, 0.014, -0.57]],
        "actions": [1, 1],
        "rewards": [1.0, 1.0],
        "log_probs": [-0.69, -0.71],
        "terminated": False,
        "truncated": True,
    }
    content = {"schema": schema, "example": {"episodes": [episode]}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


UPLOAD = _documented()
"""An upload in the OpenAPI document."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece that was found sound.

    Attributes:
        place: In the request.
        id: Of the episode.
        revision: Of the policy that acted.
        offset: Step of the episode that it starts at.
        terminated: Whether the episode ends with it in a terminal state.
        truncated: Whether it ends with it, cut off.
        arrays: Its numbers, by the names of :class:`UploadedPiece`.
        payload: ``revision``, ``terminated``, ``truncated`` and ``arrays`` as bytes; ``id`` and ``offset`` are its key.
        digest: Hex sha256 of those bytes.
    """

    place: int
    id: str
    revision: int
    offset: int
    terminated: bool
    truncated: bool
    arrays: dict[str, NDArray[Any]]
    payload: bytes
    digest: str

    @staticmethod
    def of(
        place: int,
        id_: str,
        revision: int,
        offset: int,
        terminated: bool,
        truncated: bool,
        arrays: dict[str, NDArray[Any]],
    ) -> Piece:
        """A piece with its bytes."""
        said = np.array([revision, terminated, truncated], np.int64)
        payload = save({**arrays, "said": said})
        digest = hashlib.sha256(payload).hexdigest()
        return Piece(place, id_, revision, offset, terminated, truncated, arrays, payload, digest)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.arrays["rewards"])

    @property
    def end(self) -> int:
        """The step of the episode after its last."""
        return self.offset + self.steps

    @property
    def is_last(self) -> bool:
        """Whether the episode ends with it."""
        return self.terminated or self.truncated


def read_pieces(task: RemoteTask, revision: int, body: bytes) -> list[Piece]:
    """The pieces in a request's body.

    Args:
        task: Where they were acted.
        revision: The newest of the policy.
        body: JSON of an :class:`Upload`.

    Raises:
        BadRequest: If it is not JSON.
        Invalid: With a pointer to each member at fault.
        PayloadTooLarge: If there are too many.
    """
    uploaded = read_struct(_DECODER, body).episodes
    if len(uploaded) > MAX_PIECES:
        raise PayloadTooLarge(f"{len(uploaded)} episodes and pieces are too many for one request; send {MAX_PIECES}")
    pieces, errors = [], []
    for place, each in enumerate(uploaded):
        check = _Check(task, revision, each)
        if found := list(check.errors()):
            errors += [FieldError(pointer_to("episodes", place, *path), detail) for path, detail in found]
            if len(errors) >= MAX_ERRORS:
                break
            continue
        pieces.append(
            Piece.of(place, each.id, each.revision, each.offset, each.terminated, each.truncated, check.arrays)
        )
    if errors:
        raise Invalid.all_of(errors[:MAX_ERRORS])
    return pieces


def load_arrays(payload: bytes) -> dict[str, NDArray[Any]]:
    """The numbers of a piece from its bytes."""
    arrays = load(payload)
    return {name: arrays[name] for name in _NAMES if name in arrays}


def join(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The numbers of consecutive pieces as those of one."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Where two pieces meet, both have the observation.
    seen = [part["observations"][:-1] for part in parts[:-1]] + [parts[-1]["observations"]]
    return joined | {"observations": np.concatenate(seen)}


_Fault = tuple[tuple[str | int, ...], str]


class _Check:
    """Makes the numbers of a piece arrays, and finds what is wrong with them."""

    def __init__(self, task: RemoteTask, revision: int, uploaded: UploadedPiece) -> None:
        self._task = task
        self._revision = revision
        self._uploaded = uploaded
        self.arrays: dict[str, NDArray[Any]] = {}

    def errors(self) -> Iterator[_Fault]:
        yield from self._identity()
        uploaded, steps = self._uploaded, len(self._uploaded.actions)
        for name, wanted in (("observations", steps + 1), ("rewards", steps), ("log_probs", steps)):
            yield from self._length(name, wanted)
        yield from self._rows("observations", int(self._task.observation_space.shape[0]))
        for name in ("rewards", "log_probs"):
            if (values := getattr(uploaded, name)) is not None:
                self.arrays[name] = np.array(values, np.float64)
        action_space = self._task.action_space
        if isinstance(action_space, Discrete):
            yield from self._discrete(int(action_space.n))
        else:
            yield from self._continuous(action_space)

    def _identity(self) -> Iterator[_Fault]:
        uploaded, horizon = self._uploaded, self._task.horizon
        end = uploaded.offset + len(uploaded.actions)
        if not uploaded.id.isprintable():
            yield ("id",), "must be printable text"
        if uploaded.id.startswith(EVENT_PREFIX):
            yield ("id",), f"must not begin with {EVENT_PREFIX!r}: so do the episodes that come of recorded actions"
        if uploaded.revision > self._revision:
            yield ("revision",), f"unknown revision {uploaded.revision}; the newest is {self._revision}"
        if end > horizon:
            yield ("actions",), f"ends at step {end}, but an episode has at most {horizon} steps, the task's horizon"
        elif end == horizon and not (uploaded.terminated or uploaded.truncated):
            yield ("truncated",), f"must be true: the episode has come to step {horizon}, the task's horizon"

    def _length(self, name: str, wanted: int) -> Iterator[_Fault]:
        values = getattr(self._uploaded, name)
        if values is not None and len(values) != wanted:
            yield (name,), f"must hold {wanted} for {len(self._uploaded.actions)} actions, not {len(values)}"

    def _rows(self, name: str, size: int) -> Iterator[_Fault]:
        rows = getattr(self._uploaded, name)
        for i, row in enumerate(rows):
            if len(row) != size:
                yield (name, i), f"must hold {size} numbers, not {len(row)}"
                return
        self.arrays[name] = np.array(rows, np.float64).reshape(len(rows), size)

    def _discrete(self, count: int) -> Iterator[_Fault]:
        uploaded = self._uploaded
        if uploaded.policy_actions is not None:
            yield ("policy_actions",), "must be null: discrete actions are the same in policy units"
        for i, action in enumerate(uploaded.actions):
            if not isinstance(action, int):
                yield ("actions", i), f"must be a whole number from 0 to {count - 1}, not a list"
                return
            if not 0 <= action < count:
                yield ("actions", i), f"must be a whole number from 0 to {count - 1}, not {action}"
                return
        self.arrays["actions"] = np.array(uploaded.actions, np.int64)
        log_prob = self.arrays.get("log_probs")
        if log_prob is not None and (above := np.flatnonzero(log_prob > _ROUNDING)).size:
            first = int(above[0])
            yield ("log_probs", first), f"must be at most 0, the logarithm of a probability, not {log_prob[first]:g}"

    def _continuous(self, space: Box) -> Iterator[_Fault]:
        size = int(space.shape[0])
        for i, action in enumerate(self._uploaded.actions):
            if isinstance(action, int):
                yield ("actions", i), f"must be a list of {size} numbers, not a number"
                return
        for name in ("actions", "policy_actions"):
            if getattr(self._uploaded, name) is not None:
                yield from self._rows(name, size)
        yield from self._length("policy_actions", len(self._uploaded.actions))
        if "actions" not in self.arrays:
            return
        # What a policy has scaled may be past a bound by the rounding of single precision.
        slack = _ROUNDING * (1.0 + np.minimum(np.abs(space.low), np.abs(space.high)))
        actions = self.arrays["actions"]
        outside = (actions < space.low - slack) | (actions > space.high + slack)
        if outside.any():
            row, column = (int(i) for i in np.argwhere(outside)[0])
            low, high = space.low[column], space.high[column]
            detail = f"must be from {low:g} to {high:g}, the bounds of the action space, not {actions[row, column]:g}"
            yield ("actions", row, column), detail
