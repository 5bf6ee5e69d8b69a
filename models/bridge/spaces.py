"""What observations and actions of any Gymnasium environment are to a policy: vectors, and ids or vectors.

Observations are flattened by :func:`gymnasium.spaces.utils.flatten`: a ``Discrete`` one is one-hot, members of a
``Dict`` or ``Tuple`` follow one another. An action is a vector where the space is made of ``Box`` alone, and an id
where it is made of ``Discrete``, ``MultiDiscrete`` and ``MultiBinary``: one for each combination.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Final, final

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatten, flatten_space
from numpy.typing import NDArray

MAX_NUMBERS: Final = 10_000
"""Most numbers in an observation or an action."""

MAX_COMBINATIONS: Final = 1024
"""Most combinations of several discrete actions."""

_RANKS: Final = {"b": 0, "i": 1, "u": 1, "f": 2}
_NAMES: Final = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"


class UnsupportedSpace(ValueError):
    """A space that no policy can work with; the message says what would be right."""


class InvalidObservation(ValueError):
    """An observation that is not what the environment's observation space announces."""


def leaves(space: Space[Any]) -> Iterator[Space[Any]]:
    """The spaces that a space is made of, in the order in which they are flattened."""
    if isinstance(space, Dict):
        for member in space.spaces.values():
            yield from leaves(member)
    elif isinstance(space, Tuple):
        for member in space.spaces:
            yield from leaves(member)
    else:
        yield space


def named(space: Space[Any]) -> str:
    """The space in words: a ``Box`` without its bounds, which may be many."""
    if isinstance(space, Dict):
        return f"Dict({', '.join(f'{name}: {named(member)}' for name, member in space.spaces.items())})"
    if isinstance(space, Tuple):
        return f"Tuple({', '.join(map(named, space.spaces))})"
    return f"Box{space.shape}" if isinstance(space, Box) else str(space)


def flat_observation_space(space: Space[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest flattened observations, each ``[O]``.

    Raises:
        UnsupportedSpace: If it cannot be flattened, or to too many numbers.
    """
    for leaf in leaves(space):
        if not isinstance(leaf, Box | Discrete | MultiDiscrete | MultiBinary):
            raise UnsupportedSpace(f"observations of the space {type(leaf).__name__}; supported are {_NAMES}")
        if leaf.dtype is None or leaf.dtype.kind not in _RANKS:
            raise UnsupportedSpace(f"observations of the type {leaf.dtype}; supported are numbers")
    size = sum(_flat_size(leaf) for leaf in leaves(space))
    if not 1 <= size <= MAX_NUMBERS:
        raise UnsupportedSpace(f"observations of {size} numbers; supported are 1 to {MAX_NUMBERS}")
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    return _bound([flat.low]), _bound([flat.high])


def _bound(parts: list[NDArray[Any]]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is beyond float32 is no bound
        bound = np.concatenate([part.ravel() for part in parts]).astype(np.float32)
    if np.isnan(bound).any():
        raise UnsupportedSpace("bounds that are NaN")
    return bound


def _flat_size(leaf: Space[Any]) -> int:
    if isinstance(leaf, Discrete):
        return int(leaf.n)
    if isinstance(leaf, MultiDiscrete):
        return int(leaf.nvec.sum())
    return math.prod(leaf.shape or ())


def flat_observation(space: Space[Any], observation: object) -> NDArray[np.float32]:
    """The observation as a vector, ``[O]``.

    Raises:
        InvalidObservation: If it is not of its space, its bounds aside: in structure, shape or type, an id out of
            range, a number that is not finite.
    """
    if isinstance(space, Box):
        flat = _array(space, observation, "").astype(np.float32).ravel()
    else:
        _require_member(space, observation, "")
        flat = np.asarray(flatten(space, observation), np.float32)
    if not np.isfinite(flat).all():
        raise InvalidObservation("the observation holds NaN or infinity")
    return flat


def _array(space: Space[Any], value: object, where: str) -> NDArray[Any]:
    array = np.asarray(value)
    if array.shape != space.shape:
        raise InvalidObservation(f"the observation{where} has the shape {array.shape}, its space {space.shape}")
    assert space.dtype is not None
    if _RANKS.get(array.dtype.kind, 3) > _RANKS[space.dtype.kind]:
        raise InvalidObservation(f"the observation{where} is of the type {array.dtype}, its space of {space.dtype}")
    return array


def _require_member(space: Space[Any], value: object, where: str) -> None:
    if isinstance(space, Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            found = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise InvalidObservation(f"the observation{where} holds {found}, its space {sorted(space.spaces)}")
        for name, member in space.spaces.items():
            _require_member(member, value[name], f"{where}[{name!r}]")
    elif isinstance(space, Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            found = f"{len(value)} members" if isinstance(value, tuple | list) else type(value).__name__
            raise InvalidObservation(f"the observation{where} holds {found}, its space {len(space.spaces)} members")
        for place, member in enumerate(space.spaces):
            _require_member(member, value[place], f"{where}[{place}]")
    elif isinstance(space, Discrete):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise InvalidObservation(f"the observation{where} is a {type(value).__name__}, no whole number") from None
        if not space.start <= number < space.start + space.n:
            raise InvalidObservation(f"the observation{where} is {number}, which is not in {space}")
    else:
        array = _array(space, value, where)
        if isinstance(space, MultiDiscrete | MultiBinary) and not space.contains(array.astype(space.dtype)):
            raise InvalidObservation(f"the observation{where} is {array.tolist()}, which is not in {space}")


@final
class Actions:
    """How an action of a policy becomes one of an environment.

    Attributes:
        count: Number of actions where a policy's action is an id, else ``None``.
        low: Lowest action ``[A]`` where it is a vector.
        high: Highest action ``[A]`` where it is a vector.

    Raises:
        UnsupportedSpace: If the space has no such actions.
    """

    def __init__(self, space: Space[Any]) -> None:
        self._space = space
        self.count: int | None = None
        self.low = self.high = np.zeros(0, np.float32)
        parts = list(leaves(space))
        if all(isinstance(part, Discrete | MultiDiscrete | MultiBinary) for part in parts):
            self._radices = [radix for part in parts for radix in _radices(part)]
            self.count = math.prod(self._radices)
            most = MAX_NUMBERS if len(self._radices) == 1 else MAX_COMBINATIONS
            if not 1 <= self.count <= most:
                raise UnsupportedSpace(f"{self.count} different actions; supported are 1 to {most}")
        elif all(isinstance(part, Box) and part.dtype.kind == "f" for part in parts):
            boxes = [part for part in parts if isinstance(part, Box)]
            self.low, self.high = _bound([box.low for box in boxes]), _bound([box.high for box in boxes])
            if not 1 <= len(self.low) <= MAX_NUMBERS:
                raise UnsupportedSpace(f"actions of {len(self.low)} numbers; supported are 1 to {MAX_NUMBERS}")
        else:
            raise UnsupportedSpace(
                f"actions of the space {named(space)}; supported are Box of floats, or Discrete, MultiDiscrete and "
                "MultiBinary, and Dict and Tuple of one or the other"
            )

    def decode(self, action: Any) -> Any:
        """The environment's action for a policy's: an id, or a vector ``[A]``."""
        if isinstance(self._space, Discrete):
            return self._space.start + action
        if isinstance(self._space, Box):
            return _within(self._space, action.reshape(self._space.shape))
        if self.count is not None:
            return _build(self._space, iter(np.unravel_index(action, self._radices)))
        return _build(self._space, iter(action))


def _radices(part: Space[Any]) -> list[int]:
    if isinstance(part, Discrete):
        return [int(part.n)]
    if isinstance(part, MultiDiscrete):
        return [int(n) for n in part.nvec.ravel()]
    return [2] * math.prod(part.shape or ())


def _build(space: Space[Any], numbers: Iterator[Any]) -> Any:
    """The member of a space whose leaves hold the next numbers."""
    if isinstance(space, Dict):
        return {name: _build(member, numbers) for name, member in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(_build(member, numbers) for member in space.spaces)
    if isinstance(space, Discrete):
        return space.start + next(numbers)
    shape = space.shape or ()
    array = np.array([next(numbers) for _ in range(math.prod(shape))]).reshape(shape).astype(space.dtype)
    if isinstance(space, MultiDiscrete):
        return array + space.start
    return _within(space, array) if isinstance(space, Box) else array


def _within(space: Box, array: NDArray[Any]) -> NDArray[Any]:
    # Rounding may have put a number one step past its bound.
    return np.clip(array.astype(space.dtype), space.low, space.high)
