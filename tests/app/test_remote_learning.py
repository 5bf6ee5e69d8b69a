"""A remote adaptation whose environment is Gymnasium's own, stepped here, by a policy that acts here."""

import gymnasium
import numpy as np
from acting import finish, look, policy_of, upload

from models.checkpoint import numpy_params, space_to_json
from models.runtime import NumpyPolicy

PPO = {
    "name": "ppo",
    "environment_steps": 12_000,
    "parallel_episodes": 4,
    "steps": 256,
    "learning_rate": 3e-3,
    "value_learning_rate": 1e-2,
    "gae_decay": 0.95,
    "epochs": 10,
    "minibatches": 4,
}


def episode_of(environment, actor, generator, name, revision):
    observation, _ = environment.reset(seed=int(generator.integers(2**31)))
    episode = {"id": name, "revision": revision, "observations": [observation.tolist()]}
    episode |= {"actions": [], "rewards": [], "log_probs": [], "terminated": False, "truncated": False}
    while not (episode["terminated"] or episode["truncated"]):
        actions, log_probs, *_ = actor.act(observation[None], generator)
        observation, reward, terminated, truncated, _ = environment.step(int(actions[0]))
        episode["observations"].append(observation.tolist())
        episode["actions"].append(int(actions[0]))
        episode["rewards"].append(float(reward))
        episode["log_probs"].append(float(log_probs[0]))
        episode["terminated"], episode["truncated"] = bool(terminated), bool(truncated)
    return episode


def test_ppo_learns_cartpole_that_is_stepped_by_the_client(client, idle):
    environment, generator = gymnasium.make("CartPole-v1", max_episode_steps=200), np.random.default_rng(3)
    spaces = {name: space_to_json(getattr(environment, name)) for name in ("observation_space", "action_space")}
    task = {"remote": spaces | {"discount": 0.99, "horizon": 200}}
    body = {"model": None, "policy": {"hidden": [32]}, "task": task, "method": PPO, "seed": 1}
    response = client.post("/v1/adaptations", json=body)
    assert response.status_code == 201, response.text
    adaptation, count = response.json(), 0
    while (now := look(client, adaptation))["stopped_by"] is None:
        policy, params = policy_of(client, adaptation)
        actor = NumpyPolicy(policy, numpy_params(params))
        episodes, steps = [], 0
        while steps < now["remote"]["environment_steps_needed"]:
            episodes.append(episode_of(environment, actor, generator, f"{count:05}", now["revision"]))
            steps, count = steps + len(episodes[-1]["actions"]), count + 1
        assert upload(client, adaptation, episodes).status_code == 200
        assert idle.work_once()
    policy, params = policy_of(client, adaptation)
    actor = NumpyPolicy(policy, numpy_params(params))
    last = [episode_of(environment, actor, generator, f"last-{i}", now["revision"]) for i in range(10)]
    upload(client, adaptation, last)
    finish(client, adaptation, 0)
    idle.work_once()
    done = look(client, adaptation)
    assert done["before"]["mean_return"] < 40
    assert done["after"]["mean_return"] > 100
    # Its own episodes are on-policy to the precision in which it acts and learns.
    assert done["remote"]["off_policy"] < 1e-9
