"""One adaptation to an environment at the client, by the service and without: 20 episodes of 100 steps at once."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from headstart_client import Client, LocalPolicy

from models.checkpoint import load_params, policy_from_json
from models.learners import MAML, MAMLConfig
from models.types import Rollout, stack_params

EPISODES = 20
STEPS = 100
ARCHITECTURE = {"hidden": [64, 64]}
DISCOUNT = 0.99


class Loop:
    """Both ways to adapt a new policy by one inner step to a vector environment of gymnasium, stepped in this process.

    Args:
        client: Of the service.
        environment: With actions that are vectors.
    """

    def __init__(self, client: Client, environment: str) -> None:
        torch.set_num_threads(1)
        self._client = client
        self._env: VectorEnv = gymnasium.make_vec(
            environment, num_envs=EPISODES, vectorization_mode="sync", max_episode_steps=STEPS
        )
        with client.adapt(None, self._env, policy=ARCHITECTURE, steps=1, episodes=EPISODES) as policy:
            spec = client.policies.get(policy.id).raw
            with tempfile.TemporaryDirectory() as folder:
                file = client.policies.download(policy.id, Path(folder) / "policy.safetensors")
                self._local, self._params = LocalPolicy.load(file), load_params(file.read_bytes())
        self._learner = MAML(MAMLConfig(), policy_from_json(spec))

    def with_service(self, seed: int, *, local: bool = False) -> float:
        """Seconds of a whole adaptation through the service: creating it, acting, uploading, the step, finishing."""
        started = time.perf_counter()
        method = {"steps": 1, "episodes": EPISODES}
        with self._client.adapt(None, self._env, policy=ARCHITECTURE, seed=seed, local=local, **method) as policy:
            assert policy.adaptation.revision >= 1
        return time.perf_counter() - started

    def pure(self, seed: int) -> float:
        """Seconds of the same episodes by a local policy, and the step, in this process."""
        started = time.perf_counter()
        generator = np.random.default_rng(seed)
        observations, actions, log_probs, rewards = [], [], [], []
        observation, _ = self._env.reset(seed=seed)
        for _ in range(STEPS):
            acted = self._local.act(observation, generator)
            observations.append(observation.copy())
            observation, reward, *_ = self._env.step(acted.actions)
            actions.append(acted.policy_actions)
            log_probs.append(acted.log_probs)
            rewards.append(reward)
        columns = (np.stack(x)[None].astype(np.float32) for x in (observations, actions, rewards, log_probs))
        seen, drawn, earned, likely = map(torch.from_numpy, columns)
        rollout = Rollout(
            observation=seen,
            action=drawn,
            reward=earned,
            mask=torch.ones_like(earned),
            log_prob=likely,
            terminated=torch.zeros(1, EPISODES, dtype=torch.bool),
            final_observation=torch.from_numpy(observation.astype(np.float32))[None],
        )
        adapted = self._learner.update(stack_params(self._params, 1), torch.tensor([DISCOUNT]), rollout)
        assert all(bool(torch.isfinite(value).all()) for value in adapted.values())
        return time.perf_counter() - started
