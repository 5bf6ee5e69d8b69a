"""What holds for every learner: in which parts and order tasks are worked on, what moves, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_cases import configured

from models import random
from models.adaptation import InnerLoop, adapt
from models.learners import LEARNERS, base
from models.learners.base import Diverged, Learner, LearnerState
from models.learners.inner import RATE
from models.learners.meta_gradient import OuterConfig
from models.learners.multitask import MultitaskConfig
from models.policy import Policy, PolicyConfig
from models.rollout import NonFiniteReward
from models.tasks import TaskBatch, define_task
from models.training import FixedTasks, Stop, Training, train
from models.types import InvalidValue, Params

TASKS, EPISODES = 7, 3
every_learner = pytest.mark.parametrize("name", LEARNERS)
discrete_and_continuous = pytest.mark.parametrize("environment", ["CartPole-v1", "Navigation2D-v0"])

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LEARNERS),
    ("maml", {"outer_step": "promp", "inner_kl_penalty": 1.0}),
    ("maml", {"outer_step": "trpo", "curvature_share": 0.5}),
    ("maml", {"baseline": "value", "first_order": True}),
    ("dice", {"variance_reduction": False, "entropy_coefficient": 0.01}),
    ("meta-sgd", {"rates": "layer"}),
]
every_variant = pytest.mark.parametrize(
    ("name", "members"), VARIANTS, ids=[" ".join((name, *map(str, members.values()))) for name, members in VARIANTS]
)
KEYS = random.fold_in(random.key("learners"), torch.arange(TASKS))


def tasks_of(environment: str, count: int = TASKS) -> list[Any]:
    parameter = {"Navigation2D-v0": "goal_x", "CartPole-v1": "length"}[environment]
    return [define_task(environment, {parameter: 0.2 + 0.1 * n}, horizon=12) for n in range(count)]


def learner_for(name: str, tasks: TaskBatch, **members: Any) -> Learner[Any]:
    small = {"episodes_per_task": EPISODES, "inner_steps": 2, "inner_learning_rate": 0.3, "outer_epochs": 2}
    return LEARNERS[name](configured(name, **small | members), policy_for(name, tasks))


def policy_for(name: str, tasks: TaskBatch) -> Policy:
    config = PolicyConfig((6, 4), normalise_observations=True, context_size=3 if name == "cavia" else 0)
    return Policy(config, tasks.environment.observation_space, tasks.environment.action_space)


def assert_same(a: LearnerState, b: LearnerState, limit: float) -> None:
    """Equal up to rounding in what gradients move; a value head is solved for, which rounding shows in more."""
    for name, value in a.params.items():
        loose = 1e4 if name.startswith("value.") else 1.0
        scale = max(1.0, float(value.abs().max()))
        assert float((value - b.params[name]).abs().max()) <= loose * limit * scale, name
    for name, value in a.memory.items():
        assert torch.equal(value, b.memory[name])


@every_variant
@discrete_and_continuous
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=["double", "single"])
def test_an_outer_step_is_the_same_however_many_tasks_are_worked_on_together(
    name: str,
    members: dict[str, Any],
    environment: str,
    dtype: torch.dtype,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = TaskBatch.of(tasks_of(environment), dtype)

    def after(max_tasks: int | None) -> LearnerState:
        learner = learner_for(name, tasks, **members, max_tasks_in_memory=max_tasks)
        return learner.outer_step(learner.initialise(0, dtype), tasks, KEYS)[0]

    whole = after(None)
    assert_same(whole, after(TASKS), 0.0)
    for max_tasks in (1, 3):
        assert_same(whole, after(max_tasks), limit)
    monkeypatch.setattr(base, "KEPT_ACTIVATIONS", 0)  # graphs are built again in place of being kept
    assert_same(whole, after(None), limit)


@every_variant
@discrete_and_continuous
def test_the_order_of_the_tasks_does_not_matter(name: str, members: dict[str, Any], environment: str) -> None:
    tasks = TaskBatch.of(tasks_of(environment), torch.float64)
    order = [3, 0, 6, 2, 5, 1, 4]
    learner = learner_for(name, tasks, **members)
    state = learner.initialise(0, torch.float64)
    after, metrics = learner.outer_step(state, tasks, KEYS)
    again, others = learner.outer_step(state, tasks.select(order), KEYS[order])
    assert_same(after, again, 1e-12)
    assert metrics == pytest.approx(others)


def tensors(state: LearnerState) -> list[torch.Tensor]:
    groups: list[Params] = [state.params, state.optimiser.mean, state.optimiser.square, state.memory]
    return [value for group in groups for value in group.values()]


@every_variant
def test_an_outer_step_leaves_the_state_it_is_given_as_it_was(name: str, members: dict[str, Any]) -> None:
    tasks = TaskBatch.of(tasks_of("CartPole-v1"), torch.float64)
    learner = learner_for(name, tasks, **members)
    state, _ = learner.outer_step(learner.initialise(0, torch.float64), tasks, KEYS)
    before = [value.clone() for value in tensors(state)]
    after, metrics = learner.outer_step(state, tasks, KEYS)
    assert all(torch.equal(x, y) for x, y in zip(before, tensors(state), strict=True))
    assert not any(value.requires_grad for value in tensors(after))
    assert any(not torch.equal(after.params[n], state.params[n]) for n in learner.outer)
    assert {"return_before", "return_after", "gradient_norm", "environment_steps"} <= set(metrics)


@every_learner
def test_the_outer_gradient_is_scaled_down_to_its_limit_as_a_whole(name: str) -> None:
    if not isinstance(configured(name), OuterConfig):
        return  # it follows no gradient with Adam
    tasks = TaskBatch.of(tasks_of("CartPole-v1"), torch.float64)

    def step(limit: float | None) -> tuple[Params, float]:
        """The gradient that Adam took, which its first mean is a tenth of, and the norm that was told."""
        learner = learner_for(name, tasks, outer_epochs=1, max_gradient_norm=limit)
        after, metrics = learner.outer_step(learner.initialise(0, torch.float64), tasks, KEYS)
        return {n: 10 * value for n, value in after.optimiser.mean.items()}, metrics["gradient_norm"]

    free, norm = step(None)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in free.values()]).norm()))
    for limit, scale in ((norm / 4, 0.25), (norm * 4, 1.0)):
        clipped, told = step(limit)
        assert told == pytest.approx(norm)
        for n, gradient in clipped.items():
            torch.testing.assert_close(gradient, scale * free[n], rtol=1e-9, atol=1e-15)


@every_learner
def test_an_iteration_takes_a_minibatch_of_the_tasks_and_counts_its_steps(name: str) -> None:
    tasks = TaskBatch.of(tasks_of("Navigation2D-v0"))
    config = dataclasses.replace(learner_for(name, tasks).config, tasks_per_iteration=3)
    source = FixedTasks(tasks.tasks)
    training = Training(config, policy_for(name, tasks).config, source, Stop(iterations=2))
    rollouts = 1 if isinstance(config, MultitaskConfig) else 3
    assert [p.state.environment_steps for p in train(training)] == [i * rollouts * 3 * EPISODES * 12 for i in (1, 2)]
    assert {task for iteration in range(20) for task in map(id, source.draw(0, iteration, 3))} == set(
        map(id, tasks.tasks)
    )


# What the inner loop of each learner moves; of the others, all that policy gradients move.
ADAPTED = {
    "anil": lambda name: name.startswith("policy.") or name == "log_std",
    "cavia": lambda name: name == "context",
}


@every_learner
@discrete_and_continuous
def test_adapting_moves_what_the_learner_adapts_and_nothing_else(name: str, environment: str) -> None:
    tasks = TaskBatch.of(tasks_of(environment), torch.float64)
    learner = learner_for(name, tasks)
    params = learner.outer_step(learner.initialise(0, torch.float64), tasks, KEYS)[0].params
    assert set(params) == set(learner.shapes())
    adapted = adapt(learner, params, tasks, InnerLoop(steps=3, episodes=EPISODES, evaluation_episodes=2), 0).params
    assert set(adapted) == set(learner.policy.shapes())
    moves = ADAPTED.get(name, lambda n: n.startswith(("trunk.", "policy.", "log_std")))
    for n, value in adapted.items():
        if not n.startswith("value."):  # fitted to each task
            assert all(torch.equal(one, params[n]) for one in value) != moves(n), n
    if name == "cavia":
        assert not bool(params["context"].any())


def with_rates(learner: Learner[Any], params: Params, rates: tuple[float, ...]) -> Params:
    """Learned rates, where there are any, of these values: those of a layer by step."""
    by_step = torch.tensor(rates, dtype=torch.float64)
    return params | {
        n: by_step[: value.shape[0]].clone() if learner.config.rates == "layer" else torch.full_like(value, rates[0])
        for n, value in params.items()
        if n.startswith(RATE)
    }


@every_learner
def test_adapting_takes_more_steps_than_training_did_and_other_rates(name: str) -> None:
    tasks = TaskBatch.of(tasks_of("Navigation2D-v0", 3), torch.float64)
    trained = learner_for(name, tasks, inner_steps=1, inner_learning_rate=0.4)
    params = trained.initialise(0, torch.float64).params

    def adapted(rate: Any, learner: Learner[Any] = trained) -> Params:
        method = InnerLoop(steps=4, episodes=EPISODES, evaluation_episodes=2, learning_rate=rate)
        result = adapt(learner, params, tasks, method, seed=1)
        assert [point.episodes.unique().tolist() for point in result.curve] == [[EPISODES * k] for k in range(5)]
        return result.params

    own = adapted(None)
    if trained.inner.learned is not None:
        with pytest.raises(InvalidValue, match="has learned its own") as refused:
            adapted(0.4)
        assert refused.value.pointer == "/method/learning_rate"
        return
    falling = adapted((0.3, 0.2, 0.1))
    for same in (
        adapted((0.3, 0.2, 0.1, 0.1)),
        adapted(None, learner_for(name, tasks, inner_learning_rate=(0.3, 0.2, 0.1))),
    ):
        assert all(torch.equal(value, same[n]) for n, value in falling.items())
    assert all(torch.equal(value, own[n]) for n, value in adapted(0.4).items())
    assert any(not torch.equal(value, falling[n]) for n, value in own.items() if not n.startswith("value."))


@pytest.mark.parametrize(("rates", "schedule"), [("parameter", (0.3,)), ("layer", (0.3, 0.1))])
def test_with_equal_learned_rates_meta_sgd_adapts_as_maml_does_with_those_given(
    rates: str, schedule: tuple[float, ...]
) -> None:
    tasks = TaskBatch.of(tasks_of("Navigation2D-v0", 3), torch.float64)
    learned = learner_for("meta-sgd", tasks, rates=rates, inner_learning_rate=0.9)
    given = learner_for("maml", tasks, inner_learning_rate=schedule)
    params = given.initialise(0, torch.float64).params
    with_learned = with_rates(learned, learned.initialise(0, torch.float64).params, schedule)
    method = InnerLoop(steps=4, episodes=EPISODES, evaluation_episodes=2)
    expected = adapt(given, params, tasks, method, seed=1).params
    for n, value in adapt(learned, with_learned, tasks, method, seed=1).params.items():
        assert torch.equal(value, expected[n])


def test_learned_rates_begin_as_the_config_says_and_are_moved_by_the_outer_step() -> None:
    tasks = TaskBatch.of(tasks_of("Navigation2D-v0", 3), torch.float64)
    for rates, first in (("parameter", [0.3]), ("layer", [0.3, 0.1])):
        learner = learner_for("meta-sgd", tasks, rates=rates, inner_learning_rate=(0.3, 0.1))
        state = learner.initialise(0, torch.float64)
        found = {n: value for n, value in state.params.items() if n.startswith(RATE)}
        assert {n.removeprefix(RATE) for n in found} == set(learner.inner.adapts)
        assert all(sorted(set(value.flatten().tolist()), reverse=True) == first for value in found.values())
        after, _ = learner.outer_step(state, tasks, KEYS[:3])
        assert all(not torch.equal(after.params[n], value) for n, value in found.items())


@every_learner
def test_context_inputs_belong_to_cavia_alone(name: str) -> None:
    tasks = TaskBatch.of(tasks_of("CartPole-v1", 1))
    spaces = (tasks.environment.observation_space, tasks.environment.action_space)
    wrong = Policy(PolicyConfig((4,), context_size=0 if name == "cavia" else 2), *spaces)
    with pytest.raises(InvalidValue, match="at least 1 for cavia" if name == "cavia" else f"0 for {name}") as refused:
        LEARNERS[name](configured(name), wrong)
    assert refused.value.pointer == "/policy/context_size"


@every_variant
def test_a_step_from_parameters_that_are_not_finite_is_an_error(name: str, members: dict[str, Any]) -> None:
    tasks = TaskBatch.of(tasks_of("CartPole-v1"), torch.float64)
    learner = learner_for(name, tasks, **members)
    state = learner.initialise(0, torch.float64)
    broken = state.params | {"policy.bias": torch.full_like(state.params["policy.bias"], float("inf"))}
    with pytest.raises((Diverged, NonFiniteReward)):
        learner.outer_step(dataclasses.replace(state, params=broken), tasks, KEYS)


def test_the_credit_of_e_maml_is_what_sets_it_apart_from_maml() -> None:
    tasks = TaskBatch.of(tasks_of("CartPole-v1"), torch.float64)
    members = {"clip_ratio": 0.2, "outer_epochs": 3}
    maml, without, credited = (
        learner_for(name, tasks, **members, exploration_coefficient=coefficient)
        for name, coefficient in (("maml", 0.0), ("e-maml", 0.0), ("e-maml", 1.0))
    )
    ends = [
        each.outer_step(each.initialise(0, torch.float64), tasks, KEYS)[0].params for each in (maml, without, credited)
    ]
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in maml.outer)
    assert not torch.equal(ends[0]["policy.weight"], ends[2]["policy.weight"])
