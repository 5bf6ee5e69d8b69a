from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces.utils import flatten

from models import random
from models.bridge.process import Process
from models.environments import bridge
from models.environments.bridge import BridgedEnvironment, EnvironmentFailed
from models.families import define_family
from models.learners import MAMLConfig
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task, environment_of, find_environment
from models.training import FamilyTasks, FixedTasks, Stop, Training, train
from models.types import InvalidValue, Params, Rollout, Task, stack_params

MODULE = "gymnasium_samples"
BOX2D = pytest.param(
    "LunarLander-v3",
    marks=pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs the extra headstart[box2d]"),
)


@pytest.fixture(autouse=True)
def bridged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    bridge.configure([MODULE], timeout_s=20.0)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    bridge.configure([])


def make(id_: str, **arguments: Any) -> gymnasium.Env[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Box2D's bindings crash where a warning of their import is an error
        return gymnasium.make(id_, max_episode_steps=-1, **arguments)


def policy_for(task: Task, hidden: int = 8) -> Policy:
    model = environment_of(task)
    return Policy(PolicyConfig(hidden=(hidden,)), model.observation_space, model.action_space)


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return random.fold_in(random.key("bridge", seed), torch.arange(count))


def run(tasks: list[Task], episodes: int, seed: int = 0) -> Rollout:
    policy = policy_for(tasks[0])
    params: Params = stack_params(policy.initialise(seed), len(tasks))
    return collect(policy, params, TaskBatch.of(tasks), episodes, keys(len(tasks), seed))


def bad(how: str, **parameters: int) -> list[Task]:
    """Two tasks, of which the second goes wrong."""
    good = define_task(f"{MODULE}:Bad-v0", {"when": 1000}, horizon=8)
    return [good, define_task(f"{MODULE}:Bad-v0", {"how": how, **parameters}, horizon=8)]


@pytest.mark.parametrize(
    ("id_", "parameters"),
    [
        ("FrozenLake-v1", {}),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
        ("Taxi-v4", {"is_rainy": True}),
        ("Blackjack-v1", {}),
        ("LunarLander-v3", {}),
        ("LunarLander-v3", {"gravity": -5.0, "enable_wind": True}),
        ("LunarLander-v3", {"continuous": True}),
        (f"{MODULE}:Rooms-v0", {"rooms": 5, "slip": 0.5}),
    ],
)
def test_a_bridged_environment_equals_gymnasiums_own_on_the_same_seeds_and_actions(
    id_: str, parameters: dict[str, Any]
) -> None:
    if id_ == "LunarLander-v3" and importlib.util.find_spec("Box2D") is None:
        pytest.skip("needs the extra headstart[box2d]")
    task = define_task(id_, parameters, horizon=60)
    policy, batch = policy_for(task), TaskBatch.of([task], torch.float64)
    rollout = collect(policy, stack_params(policy.initialise(0, torch.float64), 1), batch, 6, keys(1))
    twin = make(id_, **parameters)
    for b in range(6):
        episode = random.fold_in(random.fold_in(keys(1)[0], b), 0)
        seed = (int(episode) >> 32) & 0xFFFFFFFF
        observation, _ = twin.reset(seed=seed)
        length = int(rollout.mask[0, :, b].sum())
        for t in range(length):
            seen = flatten(twin.observation_space, observation)
            np.testing.assert_array_equal(rollout.observation[0, t, b], seen.astype(np.float32))
            action = policy.to_environment(rollout.action[0, t, b])
            observation, reward, terminated, truncated, _ = twin.step(as_gymnasium(twin, action))
            assert float(rollout.reward[0, t, b]) == float(reward)
            assert (terminated or truncated) == (t == length - 1 < 59) or length == 60
        assert bool(rollout.terminated[0, b]) == terminated
        final = flatten(twin.observation_space, observation)
        np.testing.assert_array_equal(rollout.final_observation[0, b], final.astype(np.float32))
    twin.close()


def as_gymnasium(twin: gymnasium.Env[Any, Any], action: torch.Tensor) -> Any:
    if isinstance(twin.action_space, gymnasium.spaces.Tuple):
        step, key = divmod(int(action), 2)
        return np.int64(step - 1), np.array([key], np.int8)
    if action.dim() == 0:
        return int(action)
    return action.numpy().astype(np.float32)


def test_parameters_are_the_keyword_arguments_with_the_kinds_of_their_defaults() -> None:
    environment = find_environment(f"{MODULE}:Rooms-v0")
    assert [(each.name, each.kind, each.default) for each in environment.parameters] == [
        ("name", "text", "house"),
        ("rooms", "integer", 3),
        ("slip", "number", 0.0),
        ("goal", "text", "null"),
        ("lit", "boolean", True),
    ]
    assert environment.default_horizon == 30
    assert "flattened to 14 numbers" in environment.description
    assert find_environment("Taxi-v4").default_horizon == 200
    assert find_environment("Blackjack-v1").default_horizon == 1000


def test_parameters_decide_the_spaces() -> None:
    sizes = {
        size: environment_of(define_task("FrozenLake-v1", {"map_name": size})).observation_size
        for size in ("4x4", "8x8")
    }
    assert sizes == {"4x4": 16, "8x8": 64}
    drawn = define_task("FrozenLake-v1", {"desc": '["SF", "HG"]'})
    assert environment_of(drawn).observation_size == 4
    assert environment_of(drawn) is environment_of(drawn)
    with pytest.raises(InvalidValue, match=r"all tasks must run in one environment"):
        TaskBatch.of([drawn, define_task("FrozenLake-v1")])


def test_a_text_can_hold_any_argument_that_json_can_write() -> None:
    task = define_task(f"{MODULE}:Rooms-v0", {"goal": "[1]", "rooms": 4}, horizon=40)
    rollout = run([task], 20)
    assert bool(rollout.terminated.any())
    rooms = rollout.final_observation[0][rollout.terminated[0]]
    # "doors" come first, then "lamp": a dictionary is flattened in the order of its names.
    assert (rooms[:, -4:].argmax(1) == 1).all()
    with pytest.raises(InvalidValue, match=r"must be a text that holds JSON") as error:
        define_task(f"{MODULE}:Rooms-v0", {"goal": "[1"})
    assert error.value.pointer == "/parameters/goal"


def test_an_environment_that_cuts_its_episodes_off_itself_has_not_terminated_them() -> None:
    task = define_task(f"{MODULE}:Rooms-v0", {"goal": "[2]", "rooms": 3, "slip": 1.0}, horizon=80)
    rollout = run([task], 4)
    assert rollout.mask.sum(1).tolist() == [[50.0] * 4]
    assert not rollout.terminated.any()


def test_vectors_of_actions_are_dealt_out_to_their_spaces() -> None:
    task = define_task(f"{MODULE}:Arm-v0", horizon=5)
    policy = policy_for(task)
    assert policy.action_space.low.tolist() == [0.0, -1.0, -1.0]
    rollout = run([task], 3)
    acted = policy.to_environment(rollout.action)[0]
    # Its observation is the hand, then the elbow; its actions are flattened by name, the elbow first.
    torch.testing.assert_close(rollout.observation[0, 1:], acted[:-1, :, [1, 2, 0]])


@pytest.mark.parametrize("id_", ["FrozenLake-v1", BOX2D, f"{MODULE}:Rooms-v0"])
def test_an_episode_is_the_same_alone_and_among_many_and_in_whatever_process(
    id_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [define_task(id_, horizon=20) for _ in range(5)]
    policy = policy_for(tasks[0])
    params = stack_params(policy.initialise(0), 5)
    monkeypatch.setattr(bridge, "_most_processes", lambda: 3)
    many = collect(policy, params, TaskBatch.of(tasks), 8, keys(5))
    monkeypatch.undo()
    again = collect(policy, params, TaskBatch.of(tasks), 8, keys(5))
    for name in ("observation", "action", "reward", "mask"):
        assert torch.equal(getattr(many, name), getattr(again, name))
    one = {name: value[3:4] for name, value in params.items()}
    alone = collect(policy, one, TaskBatch.of(tasks[3:4]), 2, keys(5)[3:4])
    steps = alone.reward.shape[1]
    assert torch.equal(many.observation[3:4, :steps, :2], alone.observation)
    assert torch.equal(many.reward[3:4, :steps, :2], alone.reward)


def test_another_seed_is_another_episode() -> None:
    task = define_task("FrozenLake-v1")
    assert not torch.equal(run([task], 20, seed=0).mask.sum(1), run([task], 20, seed=1).mask.sum(1))


def test_tasks_of_one_batch_may_be_made_with_different_arguments() -> None:
    tasks = [define_task("FrozenLake-v1", {"is_slippery": slippery}, horizon=6) for slippery in (True, False)]
    rollout = run(tasks, 40)
    moves = rollout.observation[:, 1:].argmax(-1) - rollout.observation[:, :-1].argmax(-1)
    right = (rollout.action[:, :-1] == 2) & (rollout.mask[:, 1:] > 0) & (rollout.observation[:, :-1].argmax(-1) % 4 < 3)
    assert set(moves[1][right[1]].tolist()) == {1}
    assert set(moves[0][right[0]].tolist()) > {1}


def test_maml_trains_on_frozen_lake_and_equal_trainings_end_in_equal_parameters() -> None:
    family = define_family("lakes", "FrozenLake-v1", {"is_slippery": {"choice": [True, False]}}, horizon=20)
    training = Training(
        MAMLConfig(tasks_per_iteration=4, episodes_per_task=5),
        PolicyConfig(hidden=(8,)),
        FamilyTasks(family, "train"),
        Stop(iterations=3),
    )
    first, second = (list(train(training))[-1].state for _ in range(2))
    assert first.iterations == 3
    for name, value in first.learner.params.items():
        assert torch.equal(value, second.learner.params[name])
    start = training.build().initialise(0).params
    assert any(not torch.equal(value, start[name]) for name, value in first.learner.params.items())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"step 3: ZeroDivisionError: nothing is left to share\nTraceback(.|\n)*in step"),
        ("exit", r"step 3: SystemExit: 4"),
        ("die", r"step 3: its process ended with exit code 3\nmy last words"),
        ("segfault", r"step 3: its process was killed by SIGSEGV\n(.|\n)*gymnasium_samples.py(.|\n)*in step"),
        ("nan", r"step 3: the observation holds NaN or infinity"),
        ("shape", r"step 3: the observation has the shape \(3,\), its space \(2,\)"),
        ("type", r"step 3: the observation is of the type <U1, its space of float32"),
        ("reward", r"step 3: the reward is inf"),
    ],
)
def test_what_goes_wrong_in_an_episode_names_task_and_step(how: str, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=rf"of task 1 \({MODULE}:Bad-v0, how={how}.*failed at {message}"):
        run(bad(how), 4)
    assert run(bad("")[:1], 4).environment_steps == 4 * 8


@pytest.mark.parametrize("how", ["hang", "sleep"])
def test_an_environment_that_hangs_is_ended_and_says_where_it_was(how: str) -> None:
    tasks = bad(how)
    bridge.configure([MODULE], timeout_s=1.0)
    with pytest.raises(EnvironmentFailed, match=r"task 1 .*step 3: it did not answer within 1 s\n(.|\n)*in step"):
        run(tasks, 4)


@pytest.mark.parametrize(
    ("parameters", "pointer", "message"),
    [
        ({"how": "make"}, "/parameters/how", "cannot be made: RuntimeError: no material\nTraceback"),
        ({"how": "reset"}, "/parameters/how", "cannot begin an episode: RuntimeError: no beginning"),
        ({"how": "first"}, "/parameters/how", "cannot begin an episode: .*has the shape"),
        ({"how": "space", "when": 2}, "/parameters", "observations of the space Text; supported are Box"),
        ({"how": "actions"}, "/parameters/how", "10000 different actions; supported are 1 to 1024"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_runs(
    parameters: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(InvalidValue, match=message) as error:
        define_task(f"{MODULE}:Bad-v0", parameters)
    assert error.value.pointer == pointer


def test_a_module_that_is_not_allowed_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "intruder.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for id_ in ("intruder:Thing-v0", "intruder.inner:Thing-v0", f"{MODULE}.intruder:Rooms-v0"):
        with pytest.raises(InvalidValue, match="HEADSTART_ENVIRONMENT_MODULES") as error:
            define_task(id_)
        assert error.value.pointer == "/environment"
    assert not (tmp_path / "was_here").exists()
    bridge.configure(["intruder"])
    with pytest.raises(InvalidValue, match=r"Gymnasium knows no 'Thing-v0' after importing intruder"):
        define_task("intruder:Thing-v0")
    assert (tmp_path / "was_here").exists()


@pytest.mark.parametrize("id_", ["Nothing-v0", "Rooms-v0", "GymV26Environment-v0", "", "a b", ":", "x" * 5000, 7, None])
def test_what_is_no_environment_is_refused_with_those_there_are(id_: Any) -> None:
    importlib.import_module(MODULE)  # it registers Rooms-v0 here, which makes it no environment of Gymnasium's
    with pytest.raises(InvalidValue, match="CartPole-v1") as error:
        find_environment(id_)
    assert error.value.pointer == "/environment"


def test_an_import_that_fails_or_hangs_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_import.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "endless_import.py").write_text("while True: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    bridge.configure(["broken_import", "endless_import"], timeout_s=1.0)
    with pytest.raises(InvalidValue, match=r"cannot be imported: ModuleNotFoundError.*nothing_of_that_name"):
        define_task("broken_import:Thing-v0")
    with pytest.raises(InvalidValue, match=r"did not answer within 1 s\n(.|\n)*endless_import.py"):
        define_task("endless_import:Thing-v0")


class Interruption(BaseException):
    pass


def test_a_rollout_that_is_interrupted_leaves_nothing_that_the_next_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    task = define_task("FrozenLake-v1", horizon=30)
    whole, answer, count = run([task], 8), Process.answer, 0

    def interrupted(self: Process, timeout_s: float) -> Any:
        nonlocal count
        count += 1
        if count == 10:
            raise Interruption
        return answer(self, timeout_s)

    monkeypatch.setattr(Process, "answer", interrupted)
    with pytest.raises(Interruption):
        run([task], 8)
    monkeypatch.undo()
    assert torch.equal(run([task], 8).observation, whole.observation)


PARENT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models.environments import bridge
from models.bridge.process import Process
bridge.configure(["gymnasium_samples"])
process = Process()
process.ask({"ask": "begin", "size": 2, "configurations": [{"module": "gymnasium_samples", "name": "Bad-v0",
    "arguments": {"how": "hang", "when": 0}}]}, [torch.zeros(1, dtype=torch.int64).numpy()] * 2)
process.answer(20)
process.ask({"ask": "step", "size": 2}, [torch.zeros(1, dtype=torch.int64).numpy()] * 2)
print(process._popen.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when the call of the environment returns")
def test_a_process_ends_with_the_one_that_started_it_even_while_it_hangs() -> None:
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent.parent)]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.02)


def test_registered_tasks_are_trained_on_as_they_are() -> None:
    tasks = tuple(define_task("Taxi-v4", {"is_rainy": rainy}, horizon=5) for rainy in (False, True))
    learner = MAMLConfig(tasks_per_iteration=2, episodes_per_task=2)
    training = Training(learner, PolicyConfig(hidden=(4,)), FixedTasks(tasks), Stop(iterations=1))
    assert isinstance(environment_of(tasks[0]), BridgedEnvironment)
    assert next(train(training)).stopped_by == "iterations"
