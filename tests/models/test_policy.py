from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from models import random
from models.adaptation import InnerLoop, adapt
from models.layers import LAYERS
from models.learners import MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task, find_environment
from models.types import InvalidValue, Params, stack_params
from models.weights import orthogonal

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
SPACES = {
    "discrete": Discrete(4),
    "box": Box(np.array([-0.1, -2.0], np.float32), np.array([0.1, 6.0], np.float32)),
}


def some_params(policy: Policy, seed: int = 0) -> Params:
    g = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(shape, generator=g) * 0.5 for name, shape in policy.shapes().items()}
    return params | {n: v.abs() + 0.1 for n, v in params.items() if n in ("observation.count", "observation.variance")}


@pytest.mark.parametrize("space", SPACES)
def test_many_policies_at_once_answer_as_each_alone(space: str) -> None:
    policy = Policy(PolicyConfig(hidden=(5, 4)), OBSERVATIONS, SPACES[space])
    each = [some_params(policy, seed) for seed in range(3)]
    together = {name: torch.stack([p[name] for p in each]) for name in each[0]}
    x = torch.randn(3, 7, 3)
    features = policy.features(together, x)
    for n in range(3):
        alone = policy.features(stack_params(each[n], 1), x[n : n + 1])
        torch.testing.assert_close(features[n], alone[0])
        torch.testing.assert_close(policy.head(together, features)[n], policy.head(stack_params(each[n], 1), alone)[0])


# Every kind of action distribution: the action space and where the standard deviation comes from.
DISTRIBUTIONS = {"categorical": ("discrete", "free"), "gaussian": ("box", "free"), "state gaussian": ("box", "state")}
distributions = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def policy_with(distribution: str) -> Policy:
    space, log_std = DISTRIBUTIONS[distribution]
    return Policy(PolicyConfig((5,), log_std=log_std), OBSERVATIONS, SPACES[space])  # type: ignore[arg-type]


def torch_distribution(policy: Policy, params: Params, head: Tensor) -> torch.distributions.Distribution:
    if policy.discrete:
        return torch.distributions.Categorical(logits=head)
    if policy.config.log_std == "state":
        mean, std = head[..., :2], head[..., 2:].clamp(-10, 3).exp()
    else:
        mean, std = head, params["log_std"].exp().unsqueeze(1).expand_as(head)
    return torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)


@distributions
def test_log_probabilities_and_entropy_are_those_of_torch_distributions(distribution: str) -> None:
    policy = policy_with(distribution)
    params = stack_params(some_params(policy), 1)
    head = policy.head(params, policy.features(params, torch.randn(1, 9, 3)))
    noise = policy.noise(params, random.fold_in(random.key(0), torch.arange(9)).reshape(1, 9))
    action = policy.choose(head, noise)
    truth = torch_distribution(policy, params, head)
    torch.testing.assert_close(policy.log_prob(params, head, action), truth.log_prob(action))
    torch.testing.assert_close(policy.entropy(params, head), truth.entropy().expand(1, 9))


def two_heads(policy: Policy) -> tuple[Params, Tensor, Params, Tensor]:
    """Two policies' parameters and heads, in float64; one state's standard deviation is beyond either clamp."""
    g = torch.Generator().manual_seed(3)
    params = [stack_params({k: v.double() for k, v in some_params(policy, i).items()}, 2) for i in range(2)]
    heads = [torch.randn(2, 4, policy.head_size, generator=g, dtype=torch.float64) for _ in range(2)]
    heads[0][0, 0, -1], heads[1][1, 1, -1] = 3.5, -11.0
    return params[0], heads[0], params[1], heads[1]


@distributions
def test_the_divergence_is_that_of_torch_distributions_and_nothing_between_equals(distribution: str) -> None:
    policy = policy_with(distribution)
    old_params, old_head, params, head = two_heads(policy)
    old, new = torch_distribution(policy, old_params, old_head), torch_distribution(policy, params, head)
    divergence = policy.divergence(old_params, old_head, params, head)
    assert divergence.shape == (2, 4)
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(old, new))
    assert not policy.divergence(params, head, params, head).any()


@distributions
def test_the_divergence_can_be_differentiated_twice_and_holds_the_old_policy_constant(distribution: str) -> None:
    policy = policy_with(distribution)
    old_params, old_head, params, head = two_heads(policy)
    head[1, 1, -1] = -0.5  # a density so narrow defeats finite differences
    free = {} if "log_std" not in params else {"log_std": params["log_std"].clone().requires_grad_()}

    def divergence(head: Tensor, *log_std: Tensor) -> Tensor:
        return policy.divergence(old_params, old_head, params | dict(zip(free, log_std, strict=True)), head)

    inputs = (head.requires_grad_(), *free.values())
    assert torch.autograd.gradcheck(divergence, inputs)
    assert torch.autograd.gradgradcheck(divergence, inputs)
    old_leaves = [old_head.requires_grad_(), *(v.requires_grad_() for k, v in old_params.items() if k == "log_std")]
    total = policy.divergence(old_params, old_head, params, head).sum()
    assert torch.autograd.grad(total, old_leaves, allow_unused=True) == (None,) * len(old_leaves)


def test_a_state_decides_the_standard_deviation_of_its_actions() -> None:
    policy = Policy(PolicyConfig((5,), log_std="state", initial_log_std=-1.5), OBSERVATIONS, SPACES["box"])
    assert policy.shapes()["policy.weight"] == (5, 4)
    assert "log_std" not in policy.shapes()
    params = stack_params(policy.initialise(0), 1)
    head = policy.head(params, policy.features(params, torch.randn(1, 6, 3)))
    torch.testing.assert_close(head[..., 2:], torch.full((1, 6, 2), -1.5), atol=0.05, rtol=0)
    head = torch.tensor([[[0.5, 0.0, -2.0, 1.0]]]).expand(1, 40_000, 4)
    noise = policy.noise(params, random.fold_in(random.key(1), torch.arange(40_000)).unsqueeze(0))
    action = policy.choose(head, noise)[0]
    # Five standard errors.
    torch.testing.assert_close(action.mean(0), torch.tensor([0.5, 0.0]), atol=5 * math.e / 200, rtol=0)
    torch.testing.assert_close(action.std(0), torch.tensor([-2.0, 1.0]).exp(), atol=0, rtol=5 / 283)
    assert torch.equal(policy.choose(head, None), head[..., :2])


def test_discrete_actions_have_no_standard_deviation_for_a_state_to_decide() -> None:
    with pytest.raises(InvalidValue, match="discrete actions have no standard deviation") as refused:
        Policy(PolicyConfig(log_std="state"), OBSERVATIONS, Discrete(4))
    assert refused.value.pointer == "/policy/log_std"


@pytest.mark.parametrize("activation", LAYERS)
def test_a_context_is_the_same_as_more_observations(activation: str) -> None:
    config = PolicyConfig((5, 4), activation, context_size=2)  # type: ignore[arg-type]
    policy = Policy(config, OBSERVATIONS, Discrete(4))
    params = {k: torch.stack([some_params(policy, seed)[k] for seed in range(3)]) for k in policy.shapes()}
    x = torch.randn(3, 7, 3)
    wide = Policy(PolicyConfig((5, 4), activation), Box(-np.inf, np.inf, (5,), np.float32), Discrete(4))  # type: ignore[arg-type]
    joined = params | {"trunk.0.weight": torch.cat([params["trunk.0.weight"], params["trunk.0.context"]], 1)}
    observation = torch.cat([x, params["context"].unsqueeze(1).expand(3, 7, 2)], -1)
    torch.testing.assert_close(policy.features(params, x), wide.features(joined, observation))


def test_a_new_context_is_zero_and_learns_in_every_task_apart() -> None:
    policy = Policy(PolicyConfig((5,), context_size=4), OBSERVATIONS, Discrete(4))
    params = policy.initialise(0)
    assert params["context"].tolist() == [0.0] * 4
    assert {"context", "trunk.0.context"} <= set(policy.trainable())
    context = params["context"].expand(3, 4).clone().requires_grad_()
    features = policy.features(stack_params(params, 3) | {"context": context}, torch.randn(3, 6, 3))
    (gradient,) = torch.autograd.grad(features[1].sum(), context)
    assert gradient[1].abs().min() > 0
    assert not gradient[[0, 2]].any()


def test_discrete_actions_are_sampled_with_their_probabilities() -> None:
    policy = Policy(PolicyConfig(), OBSERVATIONS, Discrete(4))
    logits = torch.tensor([[[0.0, 1.0, -1.0, 0.5]]]).expand(1, 40_000, 4)
    noise = policy.noise({"policy.bias": logits}, random.fold_in(random.key(1), torch.arange(40_000))).unsqueeze(0)
    counts = torch.bincount(policy.choose(logits, noise).flatten(), minlength=4) / 40_000
    # Five standard errors of a share of a quarter or so.
    torch.testing.assert_close(counts, logits[0, 0].softmax(0), atol=5 * 0.5 / 200, rtol=0)


def test_scaled_and_squashed_actions_fill_the_action_space_and_clipped_ones_stay_in_it() -> None:
    raw = torch.tensor([[[-9.0, -1.0], [0.0, 0.0], [1.0, 9.0]]])
    scale = Policy(PolicyConfig(action_scaling="scale"), OBSERVATIONS, SPACES["box"])
    expected = torch.tensor([[[-0.1, -2.0], [0.0, 2.0], [0.1, 6.0]]])
    torch.testing.assert_close(scale.to_environment(raw), expected)
    clip = Policy(PolicyConfig(action_scaling="clip"), OBSERVATIONS, SPACES["box"])
    torch.testing.assert_close(clip.to_environment(raw), torch.tensor([[[-0.1, -1.0], [0.0, 0.0], [0.1, 6.0]]]))
    squash = Policy(PolicyConfig(action_scaling="squash"), OBSERVATIONS, SPACES["box"])
    expected = torch.tensor([[[-0.1, 2.0 - 4.0 * 0.761594], [0.0, 2.0], [0.0761594, 6.0]]])
    torch.testing.assert_close(squash.to_environment(raw), expected)


def test_scaling_needs_finite_bounds() -> None:
    for scaling in ("scale", "squash"):
        with pytest.raises(InvalidValue, match="finite bounds"):
            Policy(PolicyConfig(action_scaling=scaling), OBSERVATIONS, Box(-np.inf, np.inf, (2,), np.float32))  # type: ignore[arg-type]


INITIALISATIONS = [PolicyConfig((6, 4)), PolicyConfig((6, 4), initialisation="orthogonal", layer_norm=True)]


@pytest.mark.parametrize("config", INITIALISATIONS, ids=lambda config: config.initialisation)
def test_a_new_policy_is_near_uniform(config: PolicyConfig) -> None:
    policy = Policy(config, OBSERVATIONS, Discrete(4))
    params = stack_params(policy.initialise(0), 1)
    head = policy.head(params, policy.features(params, torch.randn(1, 50, 3)))
    torch.testing.assert_close(head.softmax(-1), torch.full((1, 50, 4), 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize("config", INITIALISATIONS, ids=lambda config: config.initialisation)
def test_a_seed_means_one_new_policy_in_every_precision_and_whatever_the_default_device(config: PolicyConfig) -> None:
    policy = Policy(config, OBSERVATIONS, Discrete(4))
    params = policy.initialise(7)
    with torch.device("meta"):
        again = policy.initialise(7, torch.float64)
    assert [value.shape for value in params.values()] == [*policy.shapes().values()]
    for name, value in params.items():
        assert torch.equal(value, again[name].float())
    assert not torch.equal(params["trunk.1.weight"], policy.initialise(8)["trunk.1.weight"])


def test_glorot_weights_are_those_of_the_versions_that_stand() -> None:
    policy = Policy(PolicyConfig((2,)), OBSERVATIONS, Discrete(2))
    expected = torch.tensor([[-0.6327551, 0.5946473], [1.0163786, 0.7830058], [0.7051996, 0.2803257]])
    torch.testing.assert_close(policy.initialise(0)["trunk.0.weight"], expected)


@pytest.mark.parametrize(("activation", "gain"), [("tanh", 5 / 3), ("relu", 2**0.5), ("gelu", 2**0.5)])
def test_orthogonal_weights_keep_the_length_of_what_passes_up_to_the_gain(activation: str, gain: float) -> None:
    config = PolicyConfig((4, 7), activation, context_size=3, initialisation="orthogonal")  # type: ignore[arg-type]
    params = Policy(config, OBSERVATIONS, Discrete(4)).initialise(0, torch.float64)
    expected = {"trunk.0.weight": gain, "trunk.0.context": gain, "trunk.1.weight": gain}
    expected |= {"policy.weight": 0.01, "value.weight": 1.0}
    for name, factor in expected.items():
        weight = params[name] if params[name].shape[0] >= params[name].shape[1] else params[name].T
        identity = torch.eye(weight.shape[1], dtype=torch.float64)
        torch.testing.assert_close(weight.T @ weight, factor**2 * identity, rtol=1e-12, atol=1e-12)


def test_orthogonal_matrices_are_uniform_over_all_of_them() -> None:
    keys = random.fold_in(random.key("test"), torch.arange(2000))
    matrices = torch.stack([orthogonal(key, 2, 2) for key in keys])
    # Rotations and reflections alike, and the first column anywhere on the circle: five standard errors.
    assert abs(float(torch.linalg.det(matrices).mean())) < 5 / 2000**0.5
    assert float(matrices.mean(0).abs().max()) < 5 * 0.5**0.5 / 2000**0.5


def test_running_statistics_equal_those_of_all_observations_together() -> None:
    policy = Policy(PolicyConfig(normalise_observations=True), OBSERVATIONS, Discrete(2))
    params = policy.initialise(0)
    batches = [torch.randn(2, 5, 3, 3) * 4 + 7, torch.randn(2, 9, 3, 3) - 3]
    masks = [torch.ones(2, 5, 3), (torch.arange(9).reshape(1, 9, 1) < 6).expand(2, 9, 3).float()]
    for batch, mask in zip(batches, masks, strict=True):
        params = policy.observe(params, batch, mask)
    rows = torch.cat([b[m > 0] for b, m in zip(batches, masks, strict=True)])
    torch.testing.assert_close(params["observation.mean"], rows.mean(0))
    torch.testing.assert_close(params["observation.variance"], rows.var(0, correction=0))


def test_running_statistics_stay_as_they_are_while_acting_and_adapting() -> None:
    model = find_environment("CartPole-v1")
    policy = Policy(PolicyConfig((4,), normalise_observations=True), model.observation_space, model.action_space)
    params = policy.observe(policy.initialise(0), torch.randn(1, 5, 2, 4), torch.ones(1, 5, 2))
    stored = {name: value.clone() for name, value in params.items()}
    tasks = TaskBatch.of([define_task("CartPole-v1", horizon=10)] * 2)
    adapted = adapt(
        MAML(MAMLConfig(), policy), params, tasks, InnerLoop(steps=2, episodes=2, evaluation_episodes=1), seed=0
    ).params
    assert not torch.equal(adapted["policy.weight"][0], stored["policy.weight"])
    for name, value in stored.items():
        assert torch.equal(params[name], value)
        if name.startswith("observation."):
            assert torch.equal(adapted[name], value.expand(2, *value.shape))
