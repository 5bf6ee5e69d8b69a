"""Environments so small that everything true of them is plain to see; each shows one thing that learning needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments import ENVIRONMENTS
from models.environments.base import Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import Params


class State(NamedTuple):
    """Steps taken so far, a sign that stays as it is drawn, and how good the first action was, 1 at best."""

    clock: Tensor
    sign: Tensor
    good: Tensor


@dataclass(frozen=True)
class Probe:
    """What an environment pays, and what is true of it.

    Attributes:
        reward: What it pays for coming to a state.
        length: Steps to the terminal state; infinite for none.
        values: What the best policy is worth, by clock and sign, where a policy can know.
        horizon: Of its task.
        discount: Of its task.
        acts: Whether actions matter: then the best first action is to go along with the sign.
        shows_clock: Whether the clock is seen. Where actions matter, how good the first one was is seen too.
    """

    reward: Callable[[State], Tensor]
    length: float
    values: Mapping[tuple[int, int], float]
    horizon: int = 5
    discount: float = 0.9
    acts: bool = False
    shows_clock: bool = True


def _both(*by_clock: float) -> dict[tuple[int, int], float]:
    """The same values for either sign."""
    return {(clock, sign): value for clock, value in enumerate(by_clock) for sign in (-1, 1)}


PROBES = {
    "a constant reward": Probe(lambda state: torch.ones_like(state.sign), 1, _both(1.0)),
    "a reward by the observation": Probe(lambda state: state.sign, 1, {(0, -1): -1.0, (0, 1): 1.0}),
    "a reward by action and observation": Probe(lambda state: state.good, 1, _both(1.0), acts=True),
    "a delayed reward": Probe(lambda state: state.good * (state.clock == 2), 2, _both(0.9), acts=True),
    "a discounted reward": Probe(lambda state: (state.clock == 2).to(state.sign), 2, _both(0.5, 1.0), discount=0.5),
    "a time limit that is not the end": Probe(
        lambda state: torch.ones_like(state.sign), math.inf, _both(5.0), horizon=4, discount=0.8, shows_clock=False
    ),
}


class ProbeEnvironment(FunctionalEnvironment):
    """A probe; its states are :class:`State`'s.

    What is seen are the clock, from 0 to 1 in place of 0 to 4, the sign, and how good the first action was. The best
    first action is the one with the sign's number, of the actions 0 and 1, or the sign times 0.5 where actions are
    numbers.
    """

    title = description = "A probe."
    parameters = (Parameter("unused", 1.0, 0.0, 1.0),)
    observation_space = Box(-2.0, 2.0, (3,), np.float32)
    default_horizon = 5

    def __init__(self, name: str, continuous: bool) -> None:
        self.id = f"{name}{', with numbers' if continuous else ''}"
        self.probe = PROBES[name]
        self.action_space = Box(-1.0, 1.0, (1,), np.float32) if continuous else Discrete(2)

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        sign = torch.where(random.uniform(rng, 1, params["unused"].dtype) < 0.5, -1.0, 1.0)
        return torch.cat([torch.zeros_like(sign), sign, torch.zeros_like(sign)], -1).to(params["unused"].dtype)

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        clock, sign, good = state.unbind(-1)
        if isinstance(self.action_space, Box):
            now = 1.0 - (action[..., 0].clamp(-1, 1) - 0.5 * sign).square()
        else:
            now = (action == (sign > 0)).to(state.dtype)
        return torch.stack([clock + 1, sign, torch.where(clock == 0, now, good)], -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        clock, sign, good = state.unbind(-1)
        return torch.stack([clock / 4 * self.probe.shows_clock, sign, good * self.probe.acts], -1)

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return self.probe.reward(State(*next_state.unbind(-1)))

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state[..., 0] >= self.probe.length


@contextmanager
def probe_environments() -> Iterator[None]:
    """All probes as environments of tasks; those whose actions are numbers have ``, with numbers`` after their name."""
    environments = [ProbeEnvironment(name, continuous) for name in PROBES for continuous in (False, True)]
    with patch.dict(ENVIRONMENTS, {each.id: each for each in environments}):
        yield
