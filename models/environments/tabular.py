"""Random Markov decision processes with finitely many states and actions.

Source: Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", section 3.1; after
Osband, Russo & Van Roy 2013, "(More) efficient reinforcement learning via posterior sampling".
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

_TRANSITIONS: Final = int(random.key("TabularMDP-v0", "transitions"))
_MEANS: Final = int(random.key("TabularMDP-v0", "means"))
_OUTCOME: Final = int(random.key("TabularMDP-v0", "outcome"))


@final
class TabularMDP(FunctionalEnvironment):
    """Move between s states by a actions, with tables that are drawn at random.

    For every state and action, the chances of the states that follow are flat Dirichlet, and the reward is normal
    with a mean drawn from N(1, 1) and the standard deviation ``reward_std``. The tables are drawn with the key
    ``instance``: one instance is the same process everywhere. Episodes start in state 0; nothing ends them.

    The observation is the state, one-hot; the environment's own state is its number and the last reward, which is
    drawn with the step.
    """

    id: str = "TabularMDP-v0"
    title: str = "Random tabular process"
    description: str = (
        "Move between a few states, with transitions and rewards from tables drawn at random. The observation says "
        "which state it is; what follows from where, and what pays, has to be found out."
    )
    parameters: tuple[Parameter, ...] = (
        Parameter("states", 10, 2, 50, "", "How many states there are.", kind="integer"),
        Parameter("actions", 5, 2, 20, "", "How many actions there are.", kind="integer"),
        Parameter("instance", 0, 0, 2**53 - 1, "", "Which process: the key of its tables.", kind="integer"),
        Parameter("reward_std", 1.0, 0.0, 100.0, "", "Standard deviation of a reward about its mean."),
    )
    default_horizon: int = 10

    def __init__(self, states: int = 10, actions: int = 5) -> None:
        self.states, self.actions = states, actions
        self.observation_space = Box(0.0, 1.0, (states,), np.float32)
        self.action_space = Discrete(actions)

    @override
    def shaped(self, parameters: Mapping[str, ParameterValue]) -> Environment:
        sizes = int(parameters["states"]), int(parameters["actions"])
        return self if sizes == (self.states, self.actions) else _with_sizes(*sizes)

    @override
    def prepare(self, params: Params) -> Params:
        """Also ``cumulative`` [..., s a, s - 1], of the chances of what follows, and ``mean`` [..., s a]."""
        instance, dtype, rows = params["instance"], params["reward_std"].dtype, self.states * self.actions
        draws = random.uniform(random.fold_in(instance, _TRANSITIONS), rows * self.states, torch.float64)
        # Exponential variates over their sum are flat Dirichlet.
        exponential = -draws.log().reshape(*instance.shape, rows, self.states)
        cumulative = exponential.cumsum(-1) / exponential.sum(-1, keepdim=True)
        means = 1 + random.normal(random.fold_in(instance, _MEANS), rows, torch.float64)
        return params | {"cumulative": cumulative[..., :-1].to(dtype), "mean": means.to(dtype)}

    @override
    def initial(self, rng: Tensor, params: Params) -> Tensor:
        return params["reward_std"].new_zeros((*rng.shape, 2))

    @override
    def transition(self, state: Tensor, action: Tensor, rng: Tensor, params: Params) -> Tensor:
        row = (state[..., 0].long() * self.actions + action).unsqueeze(-1)
        draw, noise = random.uniform(random.fold_in(rng, _OUTCOME), 2, state.dtype).unbind(-1)
        cumulative = torch.take_along_dim(params["cumulative"], row.unsqueeze(-1), -2).squeeze(-2)
        following = (draw.unsqueeze(-1) >= cumulative).sum(-1)
        mean = torch.take_along_dim(params["mean"], row, -1).squeeze(-1)
        reward = mean + params["reward_std"] * torch.special.ndtri(noise)
        return torch.stack((following.to(state.dtype), reward), -1)

    @override
    def observation(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return (state[..., :1] == torch.arange(self.states, device=state.device)).to(state.dtype)

    @override
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return next_state[..., 1]

    @override
    def terminal(self, state: Tensor, rng: Tensor | None, params: Params) -> Tensor:
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    @override
    def optimal_return(self, params: Params, horizon: Tensor) -> Tensor | None:
        """By dynamic programming over the steps that are left, from state 0.

        V_h(s) = max_a mean(s, a) + Σ_s' P(s' | s, a) V_{h-1}(s'),   V_0 = 0

        Source: Puterman 1994, section 4.5, "the backward induction algorithm".
        """
        cumulative = params["cumulative"].squeeze(1).double()
        edge = torch.zeros_like(cumulative[..., :1])
        chance = torch.diff(torch.cat((edge, cumulative, edge + 1), -1))
        mean = params["mean"].squeeze(1).double()
        value = mean.new_zeros((mean.shape[0], self.states))
        for left in range(1, int(horizon.max()) + 1):
            worth = mean + (chance @ value.unsqueeze(-1)).squeeze(-1)
            best = worth.reshape(-1, self.states, self.actions).amax(-1)
            value = torch.where((left <= horizon).unsqueeze(-1), best, value)
        return value[:, 0].to(params["mean"].dtype)


@cache
def _with_sizes(states: int, actions: int) -> TabularMDP:
    return TabularMDP(states, actions)
