"""Runs as the OpenAPI document shows them: what a service answered, its numbers rounded."""

from __future__ import annotations

from typing import Any

from models.checkpoint import to_json
from models.learners import MAMLConfig
from models.policy import PolicyConfig
from models.training import Stop

NEW_RUN: dict[str, Any] = {
    "model": "cartpole",
    "learner": {"name": "maml", "inner_learning_rate": 0.1, "tasks_per_iteration": 20},
    "policy": {"hidden": [64, 32], "activation": "tanh"},
    "tasks": {"family": "cartpole-physics", "split": "train"},
    "stop": {"iterations": 200, "seconds": 60, "gap": {"above": 40.0, "evaluations": 3}},
    "evaluation": {"split": "test", "tasks": 20, "every_iterations": 20, "steps": 3},
    "seed": 0,
    "device": "auto",
}

LEARNER: dict[str, Any] = to_json(MAMLConfig(inner_learning_rate=0.5, tasks_per_iteration=5))
POLICY: dict[str, Any] = to_json(PolicyConfig())
STOP: dict[str, Any] = to_json(Stop(iterations=6, seconds=60.0))
TASKS: dict[str, Any] = {"family": "cartpole-physics", "split": "train"}
EVALUATION: dict[str, Any] = {"split": "test", "tasks": 2, "every_iterations": 3, "steps": 1, "episodes": None}

VALUES = {
    "return_before": 69.79,
    "return_after": 70.57,
    "gradient_norm": 0.023,
    "held_out_return_step_1": 103.6,
    "held_out_return_before": 107.525,
    "held_out_return_after": 103.6,
    "generalisation_gap": -33.03,
}

RUN: dict[str, Any] = {
    "id": "01a20729-cd99-759e-9d0b-f195fec75185",
    "state": "succeeded",
    "attempts": 1,
    "error": None,
    "cancel_requested": False,
    "created_at": "2026-11-23T06:48:29.849795Z",
    "started_at": "2026-11-23T06:48:30.541506Z",
    "finished_at": "2026-11-23T06:48:31.699930Z",
    "model": "cartpole",
    "version": 3,
    "progress": {"fraction": 1.0, "iterations": 6, "environment_steps": 53571, "seconds": 1.0307},
    "metrics": VALUES,
    "best": {"iteration": 6, "held_out_return_after": 103.6},
    "stopped_by": "iterations",
    "learner": LEARNER,
    "policy": POLICY,
    "tasks": TASKS,
    "stop": STOP,
    "evaluation": EVALUATION,
    "seed": 2,
    "device": "auto",
}

METRIC: dict[str, Any] = {
    "sequence": 6,
    "iteration": 6,
    "environment_steps": 53571,
    "seconds": 1.0307,
    "values": VALUES,
    "evaluation": {"mean_return": [[105.9, 109.15], [109.85, 97.35]]},
}

EVALUATION_TASKS: dict[str, Any] = {
    "family": "cartpole-physics",
    "split": "test",
    "seed": 2,
    "tasks": [
        {
            "environment": "CartPole-v1",
            "parameters": {
                "force_mag": 13.4757,
                "gravity": 11.777,
                "length": 0.8976,
                "masscart": 1.7008,
                "masspole": 0.1003,
                "tau": 0.02,
            },
            "reward": None,
            "discount": 0.99,
            "horizon": 200,
        },
        {
            "environment": "CartPole-v1",
            "parameters": {
                "force_mag": 7.8999,
                "gravity": 10.7642,
                "length": 0.8193,
                "masscart": 1.0067,
                "masspole": 0.2132,
                "tau": 0.02,
            },
            "reward": None,
            "discount": 0.99,
            "horizon": 200,
        },
    ],
}
