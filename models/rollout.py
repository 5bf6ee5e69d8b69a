"""Collect episodes of many policies in many tasks at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models import random
from models.environments.base import Simulation
from models.policy import Policy
from models.tasks import TaskBatch
from models.types import Params, Rollout

_CHUNK = 32  # steps whose noise is drawn together; episodes that end early never draw the rest


class NonFiniteReward(ArithmeticError):
    """A reward or an observation that is not a finite number, with the task and the step it came from."""


@torch.no_grad()
def collect(
    policy: Policy,
    params: Params,
    tasks: TaskBatch,
    episodes: int,
    keys: Tensor,
    *,
    deterministic: bool = False,
    traced: bool = False,
    states: bool = False,
) -> Rollout:
    """Run ``episodes`` episodes of policy n in task n, all at once.

    An episode depends on its own key, task and parameters alone, not on what is collected beside it.

    Args:
        policy: The architecture.
        params: Parameters of N policies, each tensor [N, ...].
        tasks: N tasks.
        episodes: B.
        keys: [N] int64, one stream for each task (:mod:`models.random`).
        deterministic: Take the most likely action in place of sampling.
        traced: Keep what the hidden layers gave; only for a policy that is traceable.
        states: Keep what drawing needs: what episodes began with, and states of an environment given by functions.

    Returns:
        The episodes, padded to the longest.

    Raises:
        NonFiniteReward: If a task's reward or dynamics gave NaN or infinity.
        EnvironmentFailed: If a bridged environment failed (:mod:`models.environments.bridge`).
    """
    episode_keys = random.fold_in(keys.unsqueeze(1), torch.arange(episodes, device=keys.device))
    horizon = tasks.horizon.unsqueeze(1)
    last_step, same_horizon = int(tasks.horizon.max()), bool((tasks.horizon == tasks.horizon[0]).all())
    step_keys = random.fold_in(episode_keys, 1).unsqueeze(1)
    alive = torch.ones(len(tasks), episodes, dtype=torch.bool, device=keys.device)
    heads, actions, terminals, masks = [], [], [], []
    noise: Tensor | None = None
    size = (len(tasks), last_step, episodes)
    trace = [params["policy.bias"].new_empty(*size, units) for units in policy.config.hidden] if traced else None
    act = policy.acting(params, trace)
    begun = random.fold_in(episode_keys, 0)
    with tasks.environment.simulate(begun, tasks) as simulation:
        observations = [simulation.first_observation]
        for t in range(last_step):
            if t % _CHUNK == 0:
                if not bool(alive.any()):
                    break
                at = torch.arange(t, min(t + _CHUNK, last_step), device=keys.device)
                chunk_keys = random.fold_in(step_keys, at.reshape(1, -1, 1))
                noise = None if deterministic else policy.noise(params, chunk_keys)
            head = act(observations[-1], t)
            action = policy.choose(head, None if noise is None else noise[:, t % _CHUNK])
            rng = chunk_keys[:, t % _CHUNK]
            observation, terminal, over = simulation.step(policy.to_environment(action), rng, alive)
            masks.append(alive)
            terminals.append(terminal)
            alive = alive & ~over if same_horizon else alive & ~over & (t + 1 < horizon)
            heads.append(head)
            actions.append(action)
            observations.append(observation)
    rollout = _assemble(policy, params, tasks, simulation, observations, heads, actions, terminals, masks)
    if states:
        rollout = replace(rollout, begun=begun, state=simulation.states(rollout.steps))
    return rollout if trace is None else replace(rollout, trace=tuple(x[:, : rollout.steps] for x in trace))


def _assemble(
    policy: Policy,
    params: Params,
    tasks: TaskBatch,
    simulation: Simulation,
    observations: list[Tensor],
    heads: list[Tensor],
    actions: list[Tensor],
    terminals: list[Tensor],
    masks: list[Tensor],
) -> Rollout:
    """Stack the steps and compute rewards and log-probabilities of all of them in one go."""
    steps = int(torch.stack([mask.any() for mask in masks]).sum())
    observation = torch.stack(observations[: steps + 1], 1)
    head, action = torch.stack(heads[:steps], 1), torch.stack(actions[:steps], 1)
    alive, terminated = torch.stack(masks[:steps], 1), torch.stack(terminals[:steps], 1)
    environment_action = policy.to_environment(action)
    reward = simulation.rewards(environment_action)
    reward = tasks.reward(observation[:, :-1], environment_action, observation[:, 1:], reward, terminated)
    reward = torch.where(alive, reward, torch.zeros((), dtype=reward.dtype, device=reward.device))
    require_finite(tasks, reward, observation)
    tasks_, steps_, episodes = alive.shape
    flat_action = action.reshape(tasks_, steps_ * episodes, *action.shape[3:])
    log_prob = policy.log_prob(params, head.reshape(tasks_, steps_ * episodes, -1), flat_action)
    return Rollout(
        observation=observation[:, :-1],
        action=action,
        reward=reward,
        mask=alive.to(reward.dtype),
        log_prob=log_prob.reshape(alive.shape),
        terminated=(terminated & alive).any(1),
        final_observation=observation[:, -1],
    )


def require_finite(tasks: TaskBatch, reward: Tensor, observation: Tensor) -> None:
    """Refuse rewards [N, T, B] or observations [N, T, B, O] that are no numbers to learn from.

    Raises:
        NonFiniteReward: At the first task and step that has one.
    """
    for what, bad in (
        ("reward", ~torch.isfinite(reward)),
        ("observation", ~torch.isfinite(observation).all(-1)),
    ):
        if bool(bad.any()):
            task, step = (int(i) for i in bad.nonzero()[0][:2])
            raise NonFiniteReward(f"the {what} became NaN or infinite in {tasks.describe(task)}, at step {step}")
