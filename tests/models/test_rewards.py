from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.rewards import MAX_LENGTH, compile_reward
from models.types import InvalidValue


def transitions(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Three tasks of four transitions with two observations each and two discrete actions."""
    generator = torch.Generator().manual_seed(0)
    return {
        "observation": torch.randn(3, 4, 2, dtype=torch.float64, generator=generator).to(dtype),
        "action": torch.randint(2, (3, 4), generator=generator),
        "next_observation": torch.randn(3, 4, 2, dtype=torch.float64, generator=generator).to(dtype),
        "reward": torch.randn(3, 4, dtype=torch.float64, generator=generator).to(dtype),
        "terminated": torch.rand(3, 4, generator=generator) < 0.5,
    }


@dataclass
class Transition:
    """One row of a batch, as plain numbers: observations o and p, action a, reward r, end e."""

    o: list[float]
    a: int
    p: list[float]
    r: float
    e: bool


MEANINGS: dict[str, Callable[[Transition], float]] = {
    "reward": lambda t: t.r,
    "terminated": lambda t: float(t.e),
    "action": lambda t: float(t.a),
    "1.5": lambda _: 1.5,
    ".5 + 1. + 2e-1": lambda _: 1.7,
    "observation[0] + 2 * next_observation[1]": lambda t: t.o[0] + 2 * t.p[1],
    "1 - abs(next_observation[1]) / 4 - 0.1 * (action == 0)": (lambda t: 1 - abs(t.p[1]) / 4 - 0.1 * (t.a == 0)),
    "-observation[0] ** 2": lambda t: -(t.o[0] ** 2),
    "2 ** -observation[1]": lambda t: 2 ** -t.o[1],
    "+reward - -reward": lambda t: 2 * t.r,
    "2 - 3 - 4": lambda _: -5.0,
    "2 ** 3 ** 2 / 512": lambda _: 1.0,
    "-0.5 < observation[0] <= 0.5": lambda t: float(-0.5 < t.o[0] <= 0.5),
    "0 < 1 != 1": lambda _: 0.0,
    "(reward > 0) + (reward >= 0) - (reward < -1)": lambda t: (t.r > 0) + (t.r >= 0) - (t.r < -1),
    "-(reward > 0)": lambda t: -float(t.r > 0),
    "reward > 0 and not terminated": lambda t: float(t.r > 0 and not t.e),
    "reward > 0 or terminated or action": lambda t: float(t.r > 0 or t.e or t.a > 0),
    "not (reward > 0) == terminated": lambda t: float((t.r > 0) != t.e),
    "where(terminated, -100, observation[0])": lambda t: -100.0 if t.e else t.o[0],
    "where(action, reward, 2 * reward)": lambda t: t.r if t.a else 2 * t.r,
    "where(reward > 0, 0.1, 0.2)": lambda t: 0.1 if t.r > 0 else 0.2,
    "min(reward, 0, observation[0])": lambda t: min(t.r, 0, t.o[0]),
    "max(reward, observation[1])": lambda t: max(t.r, t.o[1]),
    "clip(reward, -0.3, 0.3)": lambda t: min(max(t.r, -0.3), 0.3),
    "exp(reward) + log(abs(reward)) + sqrt(reward ** 2)": (lambda t: math.exp(t.r) + math.log(abs(t.r)) + abs(t.r)),
    "sin(reward) * cos(reward) - tanh(reward)": (lambda t: math.sin(t.r) * math.cos(t.r) - math.tanh(t.r)),
    " 1 +\t1 ": lambda _: 2.0,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("expression", MEANINGS)
def test_an_expression_means_what_python_means_by_it(expression: str, dtype: torch.dtype) -> None:
    batch = transitions(dtype)
    value = compile_reward(expression, 2, None)(**batch)
    assert value.dtype == dtype
    assert value.shape == (3, 4)
    columns = [value.flatten(0, 1).tolist() for value in batch.values()]
    expected = [float(MEANINGS[expression](Transition(*row))) for row in zip(*columns, strict=True)]
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(value.flatten(), torch.tensor(expected, dtype=dtype), **close)


def test_a_vector_action_is_read_by_its_index() -> None:
    batch = transitions() | {"action": torch.arange(24, dtype=torch.float64).reshape(3, 4, 2)}
    value = compile_reward("action[1] - action[0] + 0 * observation[1]", 2, 2)(**batch)
    assert torch.equal(value, torch.ones(3, 4, dtype=torch.float64))


def test_one_function_serves_steps_and_whole_rollouts_in_both_dtypes() -> None:
    function = compile_reward("0.1 * reward", 2, None)
    batch = transitions()
    whole = function(**batch)
    assert torch.equal(function(**{name: value[1] for name, value in batch.items()}), whole[1])
    assert function(**transitions(torch.float32)).dtype == torch.float32


def test_what_is_not_finite_is_returned_as_it_comes() -> None:
    batch = transitions() | {"reward": torch.zeros(3, 4, dtype=torch.float64)}
    assert bool(compile_reward("1 / reward", 2, None)(**batch).isinf().all())
    assert bool(compile_reward("log(reward - 1)", 2, None)(**batch).isnan().all())
    assert bool(compile_reward("0 / reward", 2, None)(**batch).isnan().all())


ATTACKS = [
    "__import__('os').system('true')",
    "().__class__",
    "reward.data",
    "reward.__class__",
    "exec",
    "eval(1)",
    "open(1)",
    "lambda: 1",
    "[reward for reward in observation]",
    "(reward, reward)",
    "[1]",
    "{1: 2}",
    "f'{reward}'",
    "'a' * 10",
    "True",
    "None",
    "...",
    "1j",
    "0x10",
    "1_000",
    "1if reward else 2",
    "1 if reward else 2",
    "reward if reward else 2",
    "reward := 1",
    "reward; reward",
    "reward\nreward",
    "reward # comment",
    "reward \\",
    "reward is reward",
    "reward in reward",
    "reward not in reward",
    "reward % 2",
    "reward // 2",
    "reward @ reward",
    "reward & 1",
    "reward << 9",
    "~reward",
    "await reward",
    "yield",
    "abs(*reward)",
    "abs(**reward)",
    "abs(x=reward)",
    "abs(abs)",
    "abs(1)(2)",
    "(abs)[0](1)",
    "reward[0]",
    "observation",
    "observation + 1",
    "observation[0][0]",
    "observation[0:1]",
    "observation[0, 1]",
    "observation[-1]",
    "observation[2]",
    "observation[True]",
    "observation[0.0]",
    "observation[action]",
    "observation[1 - 1]",
    "observation[" + "9" * 900 + "]",
    "action[0]",
    "unknown",
    "unknown(1)",
    "abs",
    "abs()",
    "abs(1, 2)",
    "min(1)",
    "max()",
    "clip(1, 2)",
    "where(1, 2)",
    "ｒeward",
    "rewärd",
    "reward\x00",
    "1 +",
    "(1",
    "1)",
    "reward reward",
    "007",
    "",
    " \t ",
    "1e400",
    "2e9",
    "-2e9",
    "9" * 1000,
    "9**9**9",
    "1e9 ** 1e9",
    "1 / 0",
    "0 / 0",
    "log(-1)",
    "log(0)",
    "min(1 / 0, 3) + reward",
    "(-8) ** 0.5",
    "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 499 + "1" + ")" * 499,
    "-" * 999 + "1",
    "not " * 240 + "1",
    "abs(" * 190 + "1" + ")" * 190,
    "+".join(["reward"] * 140),
    "reward" + " " * MAX_LENGTH,
]


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda text: text[:20].encode("ascii", "replace").decode())
def test_anything_but_bounded_arithmetic_is_refused_with_a_reason(expression: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        compile_reward(expression, 2, None)
    assert refused.value.pointer == "/reward/expression"
    assert 10 < len(refused.value.detail) < 500


@pytest.mark.parametrize("value", [None, 1, b"reward", ["reward"], {"expression": "reward"}])
def test_an_expression_is_a_text(value: object) -> None:
    with pytest.raises(InvalidValue, match="must be a text"):
        compile_reward(value, 2, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "action_size", "detail"),
    [
        ("1 + reward.data", None, "at column 11: '.' is not allowed here; allowed are observation[i]"),
        ("1 + observation[7]", None, "at column 17: the index of observation must be a whole number from 0 to 1"),
        ("1 + speed", None, "at column 5: unknown name 'speed'; allowed are observation[i]"),
        ("1 + floor(2)", None, "at column 5: unknown function 'floor'; allowed are observation[i]"),
        ("1 + action", 3, "at column 5: action is a vector: write action[0] to action[2]"),
        ("2 * clip(reward, 1)", None, "at column 5: clip takes 3 arguments, not 2"),
        ("reward + 1 / 0", None, "at column 10: this is always inf, which is no reward"),
        ("reward + 5e9", None, "at column 10: a number may be 1e+09 at most"),
        ("reward * (1", None, "at column 10: '(' was never closed"),
    ],
)
def test_a_refusal_says_where_and_what_is_allowed(expression: str, action_size: int | None, detail: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        compile_reward(expression, 2, action_size)
    assert refused.value.detail.startswith(detail)


def test_the_longest_sums_and_the_deepest_nesting_allowed_are_evaluated() -> None:
    batch = transitions()
    long_sum = compile_reward("+".join(["reward"] * 100), 2, None)(**batch)
    torch.testing.assert_close(long_sum, 100 * batch["reward"])
    deep = compile_reward("abs(" * 99 + "reward" + ")" * 99, 2, None)(**batch)
    assert torch.equal(deep, batch["reward"].abs())
