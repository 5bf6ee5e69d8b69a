"""Environments, task families and tasks as the OpenAPI document shows them: what a service answered."""

from __future__ import annotations

from typing import Any

from models.checkpoint import to_json
from models.presets import RECOMMENDED

ENVIRONMENT: dict[str, Any] = {
    "id": "Navigation2D-v0",
    "title": "Navigation in the plane",
    "description": (
        "Walk from the origin to a goal that the observation does not show. Dense reward: minus the distance to the "
        "goal; sparse: 1 at the goal, falling to 0 at the radius; within: 1 minus the distance inside the radius, else "
        "0. Ends within 0.01 on both axes, unless the reward is within."
    ),
    "parameters": [
        {
            "name": "goal_x",
            "default": 0.5,
            "kind": "number",
            "low": -10.0,
            "high": 10.0,
            "unit": "m",
            "description": "The goal's position on the first axis.",
            "choices": [],
        },
        {
            "name": "goal_y",
            "default": 0.5,
            "kind": "number",
            "low": -10.0,
            "high": 10.0,
            "unit": "m",
            "description": "The goal's position on the second axis.",
            "choices": [],
        },
        {
            "name": "reward",
            "default": "dense",
            "kind": "text",
            "low": None,
            "high": None,
            "unit": "",
            "description": "How distance is rewarded.",
            "choices": ["dense", "sparse", "within"],
        },
        {
            "name": "radius",
            "default": 0.2,
            "kind": "number",
            "low": 0.01,
            "high": 100.0,
            "unit": "m",
            "description": "Distance at which a reward that is not dense begins.",
            "choices": [],
        },
    ],
    "observation_space": {"type": "box", "low": [None, None], "high": [None, None]},
    "action_space": {
        "type": "box",
        "low": [-0.10000000149011612, -0.10000000149011612],
        "high": [0.10000000149011612, 0.10000000149011612],
    },
    "default_horizon": 100,
}

NEW_FAMILY: dict[str, Any] = {
    "name": "cartpole-two-ways",
    "environment": "CartPole-v1",
    "parameters": {"length": {"uniform": [0.25, 1.0]}, "gravity": 9.8, "force_mag": {"choice": [10, -10]}},
    "reward": None,
    "discount": 0.99,
    "horizon": 200,
}

FAMILY: dict[str, Any] = {
    "name": "cartpole-physics",
    "environment": "CartPole-v1",
    "parameters": {
        "force_mag": {"uniform": [7.0, 15.0]},
        "gravity": {"uniform": [8.0, 12.0]},
        "length": {"uniform": [0.25, 1.0]},
        "masscart": {"uniform": [0.5, 2.0]},
        "masspole": {"uniform": [0.05, 0.3]},
        "tau": 0.02,
    },
    "reward": None,
    "discount": 0.99,
    "horizon": 200,
    "preset": True,
    "recommended": {
        "learner": to_json(RECOMMENDED["cartpole-physics"].learner),
        "policy": to_json(RECOMMENDED["cartpole-physics"].policy),
    },
    "created_at": "2026-11-23T06:48:29.748705Z",
}

NEW_TASK: dict[str, Any] = {
    "name": "cartpole-long",
    "environment": "CartPole-v1",
    "parameters": {"length": 1.0},
    "reward": None,
    "discount": 0.99,
    "horizon": 200,
    "family": "cartpole-physics",
    "split": "test",
    "labels": {"pipeline": "nightly"},
}

TASK: dict[str, Any] = {
    "id": "01a20729-cd6c-7bf3-8b61-8b218f698785",
    "name": "cartpole-long",
    "environment": "CartPole-v1",
    "parameters": {
        "force_mag": 10.0,
        "gravity": 9.8,
        "length": 1.0,
        "masscart": 1.0,
        "masspole": 0.1,
        "tau": 0.02,
    },
    "reward": None,
    "discount": 0.99,
    "horizon": 200,
    "family": "cartpole-physics",
    "split": "test",
    "labels": {"pipeline": "nightly"},
    "digest": "fdec78a3549f90cd4b9a76e3a4f4168161809f6eaa91ccd083a175107b39ca70",
    "created_at": "2026-11-23T06:48:29.805300Z",
}

APPLIED: dict[str, Any] = {
    "applied": True,
    "families": [
        {
            "name": FAMILY["name"],
            "id": None,
            "outcome": "unchanged",
            "differences": [],
        }
    ],
    "tasks": [{"name": TASK["name"], "id": TASK["id"], "outcome": "created", "differences": []}],
}
