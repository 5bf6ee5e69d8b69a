"""Films of rollouts against Gymnasium's own environments, drawn beside them."""

from __future__ import annotations

import gc
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
from numpy.typing import NDArray

from models import random
from models.environments import ENVIRONMENTS, bridge
from models.environments.bridge import EnvironmentFailed
from models.film import CannotDraw, film
from models.policy import Policy, PolicyConfig
from models.rollout import collect
from models.tasks import TaskBatch, define_task, environment_of
from models.types import InvalidValue, Rollout, stack_params

MODULE = "gymnasium_samples"
BOX2D = pytest.param(
    "LunarLander-v3",
    marks=pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs the extra headstart[box2d]"),
)
RATES = {
    "Acrobot-v1": 15,
    "CartPole-v1": 50,
    "MountainCar-v0": 30,
    "MountainCarContinuous-v0": 30,
    "Pendulum-v1": 30,
    "Ant-v5": 20,
    "HalfCheetah-v5": 20,
    "Hopper-v5": 125,
    "Walker2d-v5": 125,
    "InvertedPendulum-v5": 25,
    "FrozenLake-v1": 4,
    "Taxi-v4": 4,
    "LunarLander-v3": 50,
}
"""Frames in a second, by Gymnasium's documentation."""
DRAWN = [name for name, environment in ENVIRONMENTS.items() if environment.renders]
LOSS = 3.0  # of 255, on average over a picture: H.264 measured below 1.0, a palette below 1.3


@pytest.fixture(autouse=True, scope="module")
def bridged() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent)
        bridge.configure([MODULE], timeout_s=20.0)
        yield
        bridge.configure([])


@pytest.fixture
def new_process() -> Iterator[None]:
    """What is drawn is drawn by a process that begins in the surroundings of the test."""
    bridge.configure([])
    yield
    bridge.configure([MODULE], timeout_s=20.0)


class Played:
    """Episodes of a new policy in a task, kept so that they can be drawn."""

    def __init__(self, environment: str, *, horizon: int = 12, episodes: int = 2, **parameters: Any) -> None:
        task = define_task(environment, parameters, horizon=horizon)
        model = environment_of(task)
        self.policy = Policy(PolicyConfig(hidden=(8,)), model.observation_space, model.action_space)
        self.tasks = TaskBatch.of([task])
        params = stack_params(self.policy.initialise(0), 1)
        keys = random.key("film").reshape(1)
        self.rollout: Rollout = collect(self.policy, params, self.tasks, episodes, keys, states=True)
        self.lengths: list[int] = self.rollout.lengths[0].tolist()

    def film(self, format: Any = "mp4") -> bytes:
        try:
            return film(self.policy, self.tasks, self.rollout, format)
        except CannotDraw as error:
            # Only a machine without OpenGL may lack something; all else is installed with the tests.
            if "libEGL" in str(error):
                pytest.skip(str(error))
            raise

    def frames(self, format: str = "mp4") -> NDArray[np.uint8]:
        """The frames of the film, [F, height, width, 3]."""
        return decoded(self.film(format), format)[0]


def decoded(content: bytes, format: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The frames of a film, [F, height, width, 3], and what its file says of itself."""
    with warnings.catch_warnings():
        # imageio leaves the pipes of its decoder to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        found = iio.imread(content, extension=f".{format}"), iio.immeta(content, extension=f".{format}")
        gc.collect()
    return found


@pytest.mark.parametrize("format", ["mp4", "gif"])
@pytest.mark.parametrize("environment", [*DRAWN, "FrozenLake-v1", "Taxi-v4", "InvertedPendulum-v5", BOX2D])
def test_every_environment_with_a_renderer_is_drawn_frame_by_frame(environment: str, format: str) -> None:
    played = Played(environment, horizon=6)
    frames, about = decoded(played.film(format), format)
    assert len(frames) == sum(length + 1 for length in played.lengths)
    assert min(frames.shape[1:3]) >= 200
    assert frames.shape[3] == 3
    # Neither the first episode nor the second is a still.
    second = played.lengths[0] + 1
    for episode in (frames[:second], frames[second:]):
        assert np.abs(np.diff(episode.astype(int), axis=0)).max() > 100
    if format == "mp4":
        assert (about["fps"], about["codec"]) == (RATES[environment], "h264")
        assert about["pix_fmt"].startswith("yuv420p")
    else:
        # Whole hundredths of a second, in milliseconds; two of them at the least.
        assert abs(about["duration"] - 1000 / min(50, RATES[environment])) < 10


@pytest.mark.parametrize("format", ["mp4", "gif"])
@pytest.mark.parametrize(
    ("environment", "parameters"),
    [
        ("CartPole-v1", {"length": 1.2}),
        ("Acrobot-v1", {"link_length_1": 0.4}),
        ("Pendulum-v1", {"max_torque": 1.0, "mass": 0.3}),
        ("MountainCar-v0", {"goal_position": 0.1}),
        ("MountainCarContinuous-v0", {"goal_position": 0.2}),
    ],
)
def test_a_film_shows_what_gymnasium_draws_of_the_same_actions(
    environment: str, parameters: dict[str, float], format: str
) -> None:
    played = Played(environment, episodes=1, **parameters)
    assert played.rollout.state is not None
    state = played.rollout.state[0, :, 0].double().numpy()
    actions = played.policy.to_environment(played.rollout.action)[0, :, 0].numpy()
    twin = gymnasium.make(environment, render_mode="rgb_array")
    twin.reset(seed=0)
    inner: Any = twin.unwrapped
    for ours, value in parameters.items():
        setattr(inner, ENVIRONMENTS[environment].attributes[ours], value)
    inner.state = state[0]
    expected = [twin.render()]
    for action in actions:
        twin.step(action)
        expected.append(twin.render())
    twin.close()
    frames = played.frames(format)
    assert frames.shape == np.array(expected).shape
    worst = np.abs(frames.astype(float) - np.array(expected)).mean((1, 2, 3)).max()
    assert worst < LOSS
    # The neighbour that a film off by one frame would show differs by more than the loss of a single pixel's edge.
    assert np.abs(np.diff(np.array(expected).astype(int), axis=0)).max() > 100


def pole(frame: NDArray[np.uint8]) -> int:
    """Pixels in the colour of CartPole's pole."""
    return int((np.abs(frame.astype(int) - (202, 152, 101)).max(-1) < 30).sum())


def test_a_pole_that_is_twice_as_long_is_drawn_twice_as_long() -> None:
    short, long = (pole(Played("CartPole-v1", length=length).frames()[0]) for length in (0.4, 0.8))
    assert short > 500
    assert long / short == pytest.approx(2, abs=0.15)


def test_a_body_is_drawn_where_its_state_says() -> None:
    # The camera follows the body: what moves in the picture is the floor, the farther the body runs.
    played = Played("Hopper-v5", episodes=1, horizon=8)
    frames = played.frames()
    assert len(frames) == played.lengths[0] + 1
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert (steps > 0).all()


@pytest.mark.usefixtures("new_process")
def test_drawing_leaves_nothing_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played = Played("HalfCheetah-v5", horizon=2)
    monkeypatch.chdir(tmp_path)
    played.film()
    assert list(tmp_path.iterdir()) == []


def test_the_same_episodes_give_the_same_film() -> None:
    assert Played("CartPole-v1").film() == Played("CartPole-v1").film()
    assert Played("FrozenLake-v1").film("gif") == Played("FrozenLake-v1").film("gif")


@pytest.mark.parametrize("environment", ["Bandit-v0", "TabularMDP-v0", "Navigation2D-v0", f"{MODULE}:Rooms-v0"])
def test_an_environment_without_a_renderer_is_refused(environment: str) -> None:
    with pytest.raises(InvalidValue, match=r"has no renderer; json") as refused:
        Played(environment).film()
    assert refused.value.pointer == "/format"


def test_a_picture_of_an_odd_size_gets_a_row_and_a_column_more() -> None:
    played = Played(f"{MODULE}:Screen-v0", horizon=5, episodes=2)
    for format in ("mp4", "gif"):
        frames = played.frames(format)
        assert frames.shape == (12, 34, 48, 3)
        bright = (frames[:6, :, :, 0] > 127).sum((1, 2))
        assert bright == pytest.approx((4 * np.arange(6)) ** 2, abs=12)
    assert decoded(played.film("gif"), "gif")[1]["duration"] == 20


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", EnvironmentFailed, "ZeroDivisionError: no paint is left\nTraceback"),
        ("nothing", EnvironmentFailed, "NoneType, no picture"),
        ("grow", EnvironmentFailed, "change their size"),
        ("die", EnvironmentFailed, "exit code 3"),
        ("differ", EnvironmentFailed, "depends on more than its seed"),
        ("import", CannotDraw, "No module named 'a_library_of_paints'"),
    ],
)
def test_a_renderer_that_fails_is_named_with_what_it_did(how: str, error: type[Exception], message: str) -> None:
    played = Played(f"{MODULE}:Screen-v0", horizon=3, how=how)
    with pytest.raises(error) as failed:
        played.film()
    assert message in str(failed.value)
    assert "Screen-v0" in str(failed.value)
    assert len(Played(f"{MODULE}:Screen-v0", horizon=3).frames()) == 8


@pytest.mark.usefixtures("new_process")
def test_a_machine_without_opengl_is_told_what_mujoco_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none of these")
    played = Played("Hopper-v5", horizon=2)
    with pytest.raises(CannotDraw, match=r"headstart\[video\].* MuJoCo draws with OpenGL .* libEGL"):
        film(played.policy, played.tasks, played.rollout, "mp4")


@pytest.mark.parametrize("environment", ["CartPole-v1", "FrozenLake-v1"])
def test_keeping_states_changes_no_episode(environment: str) -> None:
    played = Played(environment)
    params = stack_params(played.policy.initialise(0), 1)
    plain = collect(played.policy, params, played.tasks, 2, random.key("film").reshape(1))
    assert (plain.observation == played.rollout.observation).all()
    assert (plain.action == played.rollout.action).all()
    assert plain.state is None
