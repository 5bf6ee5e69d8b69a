"""What observations a policy may be asked with, and what may be answered: the same for every way to act."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid, PayloadTooLarge
from app.validation import pointer_to
from models.remote import LARGEST
from models.runtime import Architecture, Decision

MAX_OBSERVATIONS = 10_000
"""Observations that one request may hold."""

MAX_NUMBERS = 2_000_000
"""Numbers in the actions that one request may be answered with: in plain Python each takes tens of bytes."""

TOO_LARGE = "is too large for this policy, which answers with what is no number"
"""Why a finite observation may be refused."""

Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""A number that float32 can hold."""

Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def require_few(count: int, architecture: Architecture) -> None:
    """Refuse more observations than one request may hold, or than may be answered at once.

    Raises:
        PayloadTooLarge: With the limit.
    """
    if count > MAX_OBSERVATIONS:
        raise PayloadTooLarge(f"one request may hold {MAX_OBSERVATIONS} observations, not more")
    size = math.prod(architecture.action_shape)
    if count * size > MAX_NUMBERS:
        raise PayloadTooLarge(f"with actions of {size} numbers one request may hold {MAX_NUMBERS // size} observations")


def require_sizes(architecture: Architecture, observations: Sequence[Sequence[float]]) -> None:
    """Refuse observations of another size than a policy was trained on.

    Raises:
        Invalid: At the first of them.
    """
    size = architecture.observation_size
    for index, row in enumerate(observations):
        if len(row) != size:
            raise Invalid(pointer_to("observations", index), wrong_size(size, len(row)))


def wrong_size(size: int, found: int) -> str:
    """Why an observation is refused that has not as many numbers as the policy takes."""
    return f"must hold {size} numbers, not {found}"


def is_finite(decision: Decision) -> bool:
    """Whether all of the answer to one observation, of plain numbers, is a number."""
    if not (math.isfinite(decision.log_prob) and math.isfinite(decision.value)):
        return False
    return decision.drawn is None or all(map(math.isfinite, (*decision.drawn, *decision.action)))


def finite_rows(decision: Decision) -> NDArray[np.bool_]:
    """Of which observations, [M], all of the answer is a number."""
    finite: NDArray[np.bool_] = np.isfinite(decision.log_prob) & np.isfinite(decision.value)
    if decision.drawn is not None:
        finite &= np.isfinite(decision.drawn).all(-1) & np.isfinite(decision.action).all(-1)
    return finite


def first_not_finite(decision: Decision) -> int | None:
    """The first observation whose answer is no number; None: there is none."""
    finite = finite_rows(decision)
    return None if finite.all() else int(np.argmin(finite))


def require_finite(decision: Decision) -> None:
    """Refuse to answer with what is no number.

    Raises:
        Invalid: At the first observation that leads to it.
    """
    index = first_not_finite(decision)
    if index is not None:
        raise not_finite(index)


def not_finite(index: int) -> Invalid:
    """The error for an observation that leads to an answer that is no number."""
    return Invalid(pointer_to("observations", index), TOO_LARGE)
