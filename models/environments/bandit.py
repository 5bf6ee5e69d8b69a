"""Arms that pay one or nothing, each with a chance of its own.

Source: Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, final

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from typing_extensions import override

from models import random
from models.environments.base import Environment, Parameter
from models.environments.functional import FunctionalEnvironment
from models.types import ParameterValue, Params

_CHANCES: Final = int(random.key("Bandit-v0", "chances"))
_PULL: Final = int(random.key("Bandit-v0", "pull"))


@final
class Bandit(FunctionalEnvironment):
    """Pull one of k arms at every step; arm i pays 1 with chance p_i, else 0.

    The chances are uniform between ``lowest`` and ``highest``, drawn with the key ``instance``: one instance is the
    same bandit everywhere. Nothing ends an episode.

    The state is the observation: how often each arm was pulled in this episode, and how often it paid, 2k numbers.
    These counts are all that the past says about the chances (a Beta posterior needs no more), and nothing of the
    chances themselves: a policy, which has no memory, can then do within one episode what the Bayes-optimal player
    does, and is measured against that player. From a constant it could only learn between episodes.
    """

    id: str = "Bandit-v0"
    title: str = "Bernoulli bandit"
    description: str = (
        "Pull one of a few arms, each of which pays 1 with a chance of its own that is not shown. The observation "
        "is how often each arm was pulled in the episode and how often it paid."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("arms", 5, 2, 1000, "", "How many arms there are.", kind="integer"),
        Parameter("instance", 0, 0, 2**53 - 1, "", "Which bandit: the key of its chances.", kind="integer"),
        Parameter("lowest", 0.0, 0.0, 1.0, "", "One end of the interval of the arms' chances."),
        Parameter("highest", 1.0, 0.0, 1.0, "", "The other end of it."),
    )
    default_horizon: int = 10

    def __init__(self, arms: int = 5) -> None:
        self.arms = arms
        self.observation_space = Box(0.0, np.inf, (2 * arms,), np.float32)
        self.action_space = Discrete(arms)

    @override
    def shaped(self, parameters: Mapping[str, ParameterValue]) -> Environment:
        arms = int(parameters["arms"])
        return self if arms == self.arms else _with_arms(arms)

    @override
    def prepare(self, params: Params) -> Params:
        lowest, highest = params["lowest"].unsqueeze(-1), params["highest"].unsqueeze(-1)
        draws = random.uniform(random.fold_in(params["instance"], _CHANCES), self.arms, torch.float64)
        return params | {"chances": lowest + (highest - lowest) * draws.to(lowest.dtype)}

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        return params["lowest"].new_zeros((*rng.shape, 2 * self.arms))

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        arm = action.unsqueeze(-1)
        draw = random.uniform(random.fold_in(rng, _PULL), 1, state.dtype)
        paid = draw < torch.take_along_dim(params["chances"], arm, -1)
        pulled = arm == torch.arange(self.arms, device=state.device)
        return state + torch.cat((pulled, pulled & paid), -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return state

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return (next_state[..., self.arms :] - state[..., self.arms :]).sum(-1)

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    @override
    def optimal_return(self, params: Params, horizon: Tensor) -> Tensor | None:
        """That of pulling the best arm only."""
        return params["chances"].amax(-1).squeeze(1) * horizon


@cache
def _with_arms(arms: int) -> Bandit:
    return Bandit(arms)
