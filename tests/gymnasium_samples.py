"""Environments that somebody else could have written, good ones and bad ones; tests allow this module."""

import ctypes
import os
import time
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple


class Rooms(gymnasium.Env):
    """Walk along rooms with a lamp in one hand and a key in the other; every kind of space is in it."""

    def __init__(self, rooms: int = 3, slip: float = 0, goal=None, name: str = "manor", lit: bool = True):
        if rooms < 2:
            raise ValueError("a walk needs two rooms")
        self.rooms, self.slip, self.lit = rooms, slip, lit
        self.goal = rooms - 1 if goal is None else goal[0]
        self.observation_space = Dict(
            {
                "room": Discrete(rooms, start=1),
                "lamp": Box(-1.0, 1.0, (2, 2), np.float64),
                "doors": Tuple((MultiDiscrete([2, 3]), MultiBinary(2))),
            }
        )
        self.action_space = Tuple((Discrete(3, start=-1), MultiBinary(1)))

    def observe(self):
        lamp = self.np_random.uniform(-1, 1, (2, 2)) if self.lit else np.zeros((2, 2))
        doors = (self.np_random.integers([2, 3]), self.np_random.integers(0, 2, 2, np.int8))
        return {"room": 1 + self.room, "lamp": lamp, "doors": doors}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.steps = 0, 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        step, [key] = action
        if self.np_random.random() >= self.slip:
            self.room = int(np.clip(self.room + step, 0, self.rooms - 1))
        self.steps += 1
        reached = self.room == self.goal and bool(key)
        return self.observe(), 1.0 * reached - 0.1, reached, self.steps == 50, {}


class Arm(gymnasium.Env):
    """Actions of several vectors."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Dict({"hand": Box(-1, 1, (1, 2), np.float32), "elbow": Box(0, 5, (1,), np.float64)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        seen = np.concatenate([action["hand"].ravel(), action["elbow"]]).astype(np.float32)
        return seen, float(seen.sum()), False, False, {}


class Bad(gymnasium.Env):
    """Does in its fourth step what its name says."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, how="", when: int = 3):
        self.how, self.when = how, when
        if how == "space":
            self.observation_space = Text(5)
        if how == "actions":
            self.action_space = MultiDiscrete([100, 100])
        if how == "make":
            raise RuntimeError("no material")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        if self.how == "reset":
            raise RuntimeError("no beginning")
        return np.zeros(3 if self.how == "first" else 2, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation, reward = np.zeros(2, np.float32), 0.0
        if self.steps > self.when:
            match self.how:
                case "raise":
                    raise ZeroDivisionError("nothing is left to share")
                case "exit":
                    raise SystemExit(4)
                case "die":
                    print("my last words", flush=True)
                    os._exit(3)
                case "segfault":
                    ctypes.string_at(0)
                case "hang":
                    while True:
                        pass
                case "sleep":
                    time.sleep(1000)
                case "nan":
                    observation[1] = np.nan
                case "shape":
                    observation = np.zeros(3, np.float32)
                case "type":
                    observation = np.array(["a", "b"])
                case "reward":
                    reward = float("inf")
        return observation, reward, False, False, {}


class Screen(gymnasium.Env):
    """A square that grows with each step, on a screen of an odd size."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 125}
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode=None, how="", delay_s: float = 0.0):
        self.render_mode, self.how, self.delay_s = render_mode, how, delay_s

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        # It ends sooner where it is drawn: nothing of its seed.
        over = self.how == "differ" and self.render_mode is not None
        return np.full(2, self.steps, np.float32), 1.0, over, False, {}

    def render(self):
        time.sleep(self.delay_s)
        picture = np.zeros((33, 47, 3), np.uint8)
        picture[: 4 * self.steps, : 4 * self.steps] = 255
        match self.how:
            case "nothing":
                return None
            case "raise":
                raise ZeroDivisionError("no paint is left")
            case "import":
                import a_library_of_paints  # noqa: F401
            case "grow":
                return np.zeros((32, 32 + 2 * self.steps, 3), np.uint8)
            case "die":
                os._exit(3)
        return picture


gymnasium.register("Screen-v0", Screen)
gymnasium.register("Rooms-v0", Rooms, max_episode_steps=30, kwargs={"name": "house"})
gymnasium.register("Arm-v0", Arm)
gymnasium.register("Bad-v0", Bad)
