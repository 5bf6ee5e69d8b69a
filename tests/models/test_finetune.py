from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from probes import probe_environments

from models import random
from models.checkpoint import load_params, save_params
from models.finetune import DQNConfig, MethodConfig, PPOConfig, Progress, SACConfig, finetune
from models.learners import MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.returns import discounted_returns, fitted_value_head
from models.rollout import collect
from models.tasks import TaskBatch, define_task
from models.types import InvalidValue, Params, Task, stack_params

CARTPOLE = [define_task("CartPole-v1", {"length": length}, horizon=30) for length in (0.4, 0.5, 0.6)]
PENDULUM = [define_task("Pendulum-v1", {"mass": mass}, horizon=30) for mass in (0.8, 1.0, 1.2)]

METHODS: dict[str, tuple[MethodConfig, list[Task]]] = {
    "ppo": (PPOConfig(environment_steps=480, steps=20, parallel_episodes=4, epochs=2, evaluation_episodes=2), CARTPOLE),
    "ppo in minibatches, with every option": (
        PPOConfig(
            environment_steps=480,
            steps=20,
            parallel_episodes=4,
            epochs=3,
            minibatches=3,
            value_clip=0.5,
            kl_limit=0.002,
            entropy_coefficient=0.01,
            max_gradient_norm=None,
            evaluation_episodes=2,
        ),
        PENDULUM,
    ),
    "dqn": (DQNConfig(environment_steps=480, warm_up_steps=100, batch_size=16, evaluation_episodes=2), CARTPOLE),
    "dqn by priority, from a buffer that is full": (
        DQNConfig(
            environment_steps=480,
            warm_up_steps=10,
            batch_size=16,
            buffer_size=128,
            priority_exponent=0.6,
            double=False,
            evaluation_episodes=2,
        ),
        CARTPOLE,
    ),
    "dqn, in rounds of more samples than are drawn together": (
        DQNConfig(
            environment_steps=480, warm_up_steps=100, updates=3, batch_size=4200, n_steps=10, evaluation_episodes=2
        ),
        CARTPOLE,
    ),
    "sac": (SACConfig(environment_steps=200, warm_up_steps=50, batch_size=16, evaluation_episodes=2), PENDULUM),
    "sac, several steps": (
        SACConfig(
            environment_steps=200, warm_up_steps=8, n_steps=3, batch_size=16, greedy=False, evaluation_episodes=2
        ),
        PENDULUM,
    ),
}

method = pytest.mark.parametrize(("config", "tasks"), METHODS.values(), ids=METHODS)


def architecture(tasks: Sequence[Task], **config: object) -> Policy:
    environment = TaskBatch.of(tasks).environment
    return Policy(PolicyConfig(hidden=(8,), **config), environment.observation_space, environment.action_space)  # type: ignore[arg-type]


def keys_of(count: int) -> torch.Tensor:
    return random.fold_in(random.key(0), torch.arange(count))


def all_progress(
    config: MethodConfig, tasks: Sequence[Task], state: Params | None = None, rows: slice = slice(None)
) -> list[Progress]:
    policy = architecture(tasks)
    count = len(tasks)
    params = {name: value[rows] for name, value in stack_params(policy.initialise(0), count).items()}
    return list(finetune(config, policy, params, TaskBatch.of(tasks[rows]), keys_of(count)[rows], state))


def assert_same(ours: Params, theirs: Params, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0.0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )  # type: ignore[misc]


@method
def test_fine_tuning_resumed_from_any_state_ends_bit_for_bit_the_same(config: MethodConfig, tasks: list[Task]) -> None:
    policy = architecture(tasks)
    params = stack_params(policy.initialise(0), len(tasks))
    run = finetune(config, policy, params, TaskBatch.of(tasks), keys_of(len(tasks)))
    saved, ends = [], []
    for progress in run:
        saved.append(save_params(progress.state()))
        ends.append(progress)
    whole = ends[-1]
    assert whole.is_last
    assert set(whole.stopped_by) == {"environment_steps"}
    for place in {0, 1, len(saved) // 2, len(saved) - 1}:
        *_, last = all_progress(config, tasks, load_params(saved[place]))
        assert_same(whole.policies(), last.policies())
        assert last.environment_steps.tolist() == whole.environment_steps.tolist()
        assert last.episodes.tolist() == whole.episodes.tolist()
        assert last.curve == whole.curve


@method
def test_a_task_comes_out_the_same_alone_and_among_others(config: MethodConfig, tasks: list[Task]) -> None:
    # Few enough rounds that rounding, which differs between products of one matrix and of three, has not grown.
    config = dataclasses.replace(config, environment_steps=160)
    together = all_progress(config, tasks)[-1]
    for i in range(len(tasks)):
        alone = all_progress(config, tasks, rows=slice(i, i + 1))[-1]
        for name, value in alone.policies().items():
            torch.testing.assert_close(value[0], together.policies()[name][i], rtol=1e-3, atol=1e-3)
        assert alone.episodes[0] == together.episodes[i]


@method
def test_the_curve_begins_before_the_first_step_and_ends_with_the_budget(
    config: MethodConfig, tasks: list[Task]
) -> None:
    last = all_progress(config, tasks)[-1]
    for curve, steps, episodes in zip(last.curve, last.environment_steps, last.episodes, strict=True):
        used = [int(point.environment_steps) for point in curve]
        assert used[0] == 0
        assert used == sorted(set(used))
        assert used[-1] == steps >= (config.environment_steps or 0)
        assert curve[-1].episodes == episodes
        assert len(curve) >= 5


def test_the_first_limit_that_holds_ends_a_task_and_leaves_the_others_going() -> None:
    # Poles that fall at different times finish their episodes at different times.
    tasks = [define_task("CartPole-v1", {"length": length}, horizon=200) for length in (0.1, 5.0)]
    config = PPOConfig(episodes=30, steps=10, parallel_episodes=4, epochs=1, evaluation_episodes=2)
    progress = all_progress(config, tasks)
    last = progress[-1]
    assert last.stopped_by == ("episodes", "episodes")
    assert last.environment_steps[0] < last.environment_steps[1]
    [over] = [p for p in progress if p.stopped_by == ("episodes", None)][:1]
    for name, value in over.policies().items():
        assert torch.equal(value[0], last.policies()[name][0])
    assert over.curve[0] == last.curve[0]


def test_a_target_that_is_reached_ends_it_at_an_evaluation() -> None:
    config = PPOConfig(environment_steps=10_000, target_return=5.0, evaluate_every=100, evaluation_episodes=2)
    last = all_progress(config, CARTPOLE)[-1]
    assert last.stopped_by == ("target_return",) * 3
    assert all(curve[-1].mean_return >= 5.0 for curve in last.curve)


def test_seconds_end_it() -> None:
    config = PPOConfig(seconds=0.2, steps=10, epochs=1, evaluation_episodes=2)
    last = all_progress(config, CARTPOLE)[-1]
    assert set(last.stopped_by) == {"seconds"}
    assert 0.2 <= last.seconds < 20.0


@pytest.mark.parametrize("config", [PPOConfig, DQNConfig, SACConfig])
def test_a_budget_is_needed(config: type[MethodConfig]) -> None:
    with pytest.raises(InvalidValue, match="at least one of environment_steps, episodes, seconds"):
        config(target_return=1.0)


@pytest.mark.parametrize(
    ("config", "tasks"),
    [(DQNConfig(environment_steps=10), PENDULUM), (SACConfig(environment_steps=10), CARTPOLE)],
    ids=["dqn", "sac"],
)
def test_a_method_that_does_not_fit_the_actions_is_refused(config: MethodConfig, tasks: list[Task]) -> None:
    with pytest.raises(InvalidValue, match="actions") as caught:
        all_progress(config, tasks)
    assert caught.value.pointer == "/method/name"


def test_what_was_learned_is_the_policys_own_tensors_and_no_others() -> None:
    for config, tasks in METHODS.values():
        policies = all_progress(dataclasses.replace(config, environment_steps=1), tasks)[-1].policies()
        assert {name: tuple(value.shape[1:]) for name, value in policies.items()} == architecture(tasks).shapes()


def test_statistics_of_observations_stay_as_a_version_has_them() -> None:
    policy = architecture(CARTPOLE, normalise_observations=True)
    params = policy.initialise(0) | {
        "observation.count": torch.tensor([10.0]),
        "observation.mean": torch.full((4,), 0.1),
        "observation.variance": torch.full((4,), 2.0),
    }
    config = METHODS["ppo"][0]
    *_, last = finetune(config, policy, stack_params(params, 3), TaskBatch.of(CARTPOLE), keys_of(3))
    for name in ("observation.count", "observation.mean", "observation.variance"):
        assert torch.equal(last.policies()[name][1], params[name])


@method
def test_a_new_policy_counts_what_it_sees_and_goes_on_counting_when_resumed(
    config: MethodConfig, tasks: list[Task]
) -> None:
    policy = architecture(tasks, normalise_observations=True)
    params = stack_params(policy.initialise(0), len(tasks))
    run = list(finetune(config, policy, params, TaskBatch.of(tasks), keys_of(len(tasks))))
    last, middle = run[-1], None
    assert torch.equal(last.policies()["observation.count"][:, 0].long(), last.environment_steps)
    assert (last.policies()["observation.variance"] != 1).all()
    for progress in finetune(config, policy, params, TaskBatch.of(tasks), keys_of(len(tasks))):
        middle = load_params(save_params(progress.state()))
        if int(progress.environment_steps[0]) >= 200:
            break
    *_, again = finetune(config, policy, params, TaskBatch.of(tasks), keys_of(len(tasks)), middle)
    assert_same(again.policies(), last.policies())


def test_a_critic_learns_at_a_rate_of_its_own() -> None:
    still = PPOConfig(environment_steps=512, learning_rate=1e-12, evaluation_episodes=2)
    before, after = (
        all_progress(config, CARTPOLE)[-1].policies()
        for config in (still, dataclasses.replace(still, value_learning_rate=1e-2))
    )
    for name, value in before.items():
        moved = (after[name] - value).flatten(1).abs().amax(1)
        assert ((moved > 0.1) if name.startswith("value.") else (moved < 1e-9)).all(), name


def test_q_learning_starts_with_what_the_policy_says() -> None:
    policy = architecture(CARTPOLE)
    params = stack_params(policy.initialise(3), 3)
    first = next(finetune(METHODS["dqn"][0], policy, params, TaskBatch.of(CARTPOLE), keys_of(3)))
    assert_same(first.policies(), {name: params[name] for name in first.policies()})


def test_q_learning_learns_sooner_from_a_start_that_knows() -> None:
    with probe_environments():
        task = define_task("a delayed reward", discount=0.9, horizon=5)
        policy, tasks, keys = architecture([task]), TaskBatch.of([task] * 4), keys_of(4)
        starts = [policy.initialise(seed) for seed in range(4)]
        new = {name: torch.stack([start[name] for start in starts]) for name in policy.shapes()}
        taught = PPOConfig(environment_steps=6_000, learning_rate=1e-2, evaluation_episodes=2)
        *_, teacher = finetune(taught, policy, new, tasks, keys)
        config = DQNConfig(
            environment_steps=2_000,
            warm_up_steps=64,
            initial_exploration=0.1,
            target_return=1.0,
            evaluate_every=32,
            evaluation_episodes=20,
        )
        needed = {}
        for name, params in (("taught", teacher.policies()), ("new", new)):
            *_, last = finetune(config, policy, params, tasks, keys)
            assert set(last.stopped_by) == {"target_return"}
            needed[name] = int(last.environment_steps.sum())
        assert needed["taught"] == 0
        assert needed["new"] > 200


@pytest.mark.parametrize("config", [METHODS[name][0] for name in ("ppo", "dqn", "sac")], ids=["ppo", "dqn", "sac"])
def test_values_of_another_reward_are_forgotten_where_that_is_asked_for(config: MethodConfig) -> None:
    tasks = PENDULUM if isinstance(config, SACConfig) else CARTPOLE
    policy = architecture(tasks)
    params = stack_params(policy.initialise(0), len(tasks))
    wrong = params | {"value.bias": params["value.bias"] + 77.0}
    forgetful = dataclasses.replace(config, reset_values=True)

    def trained(method: MethodConfig, start: Params) -> Params:
        *_, last = finetune(method, policy, start, TaskBatch.of(tasks), keys_of(len(tasks)))
        return last.policies()

    ours = trained(forgetful, wrong)
    assert_same(ours, trained(forgetful, params))
    assert not torch.equal(ours["policy.weight"], trained(config, wrong)["policy.weight"])
    assert not torch.equal(ours["value.weight"][0], ours["value.weight"][1])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_value_head_that_a_version_is_left_with_leans_on_no_small_difference(seed: int) -> None:
    tasks = TaskBatch.of(CARTPOLE)
    policy = Policy(PolicyConfig(hidden=(64, 64)), tasks.environment.observation_space, tasks.environment.action_space)
    learner = MAML(MAMLConfig(episodes_per_task=20), policy)
    params = stack_params(policy.initialise(seed), len(tasks))
    keys = random.fold_in(random.key(seed), torch.arange(len(tasks)))
    rollout = collect(policy, params, tasks, 20, keys)
    kept = learner.fit_value(params, tasks.discount, rollout)
    returns = discounted_returns(rollout.reward, rollout.mask, tasks.discount).flatten(1)
    features = policy.features(params, rollout.observation.flatten(1, 2))
    plain, mask = fitted_value_head(features, returns, rollout.mask.flatten(1)), rollout.mask.flatten(1)

    def error(head: Params) -> float:
        return float(((policy.value(head, features) - returns).square() * mask).sum() / mask.sum())

    assert float(kept["value.weight"].abs().max()) < 0.2 * float(plain["value.weight"].abs().max())
    spread = float(((returns - (returns * mask).sum() / mask.sum()).square() * mask).sum() / mask.sum())
    assert error(kept) < error(plain) + 0.1 * spread
