"""Models, versions and aliases as the OpenAPI document shows them: what a service answered, its numbers rounded."""

from __future__ import annotations

from typing import Any

from app.runs.examples import EVALUATION, LEARNER, POLICY, RUN, STOP, TASKS, VALUES
from app.tasks.examples import FAMILY

CARTPOLE_SPACES: dict[str, Any] = {
    "observation_space": {"type": "box", "low": [-4.8, None, -0.4189, None], "high": [4.8, None, 0.4189, None]},
    "action_space": {"type": "discrete", "n": 2},
}

_PARAMETERS: dict[str, Any] = {
    "sha256": "30996128ec2b7bd7a7a7f8ae9931259f705f74d3b03ab5dbfd1ef60c4d786bd6",
    "size_bytes": 10572,
}

_CODE_VERSION = "0.1.0+core.4a01d44acd02"

MODEL: dict[str, Any] = {
    "name": "cartpole",
    "created_at": "2026-11-23T06:48:30.119077Z",
    "latest_version": 3,
    "aliases": {"champion": 3},
}

VERSION: dict[str, Any] = {
    "model": "cartpole",
    "version": 3,
    "run": RUN["id"],
    "created_at": "2026-11-23T06:48:31.699184Z",
    "metrics": VALUES,
    "manifest": {
        "format": 1,
        "code_version": _CODE_VERSION,
        "run": RUN["id"],
        "learner": LEARNER,
        "policy": POLICY,
        "environment": "CartPole-v1",
        **CARTPOLE_SPACES,
        "family": {
            name: FAMILY[name] for name in ("name", "environment", "parameters", "reward", "discount", "horizon")
        },
        "tasks": TASKS,
        "stop": STOP,
        "stopped_by": "iterations",
        "evaluation": EVALUATION,
        "seed": 2,
        "iteration": 6,
        "iterations": 6,
        "selected_by": "held_out_return",
        "environment_steps": 53571,
        "metrics": VALUES,
        "files": {
            "parameters.safetensors": _PARAMETERS
            | {
                "shapes": {
                    "policy.bias": [2],
                    "policy.weight": [32, 2],
                    "trunk.0.bias": [64],
                    "trunk.0.weight": [4, 64],
                    "trunk.1.bias": [32],
                    "trunk.1.weight": [64, 32],
                    "value.bias": [1],
                    "value.weight": [32, 1],
                }
            }
        },
    },
    "files": [
        {
            "name": "manifest.json",
            "sha256": "f9746dc7d1aa15082a316039cdb4805032e4cd3c04047754d5380699866f785b",
            "size_bytes": 2336,
        },
        {"name": "parameters.safetensors"} | _PARAMETERS,
    ],
    "aliases": ["champion"],
}

LINEAGE: dict[str, Any] = {
    "model": "cartpole",
    "version": 3,
    "run": RUN["id"],
    "tasks": TASKS,
    "task_ids": [],
    "learner": LEARNER,
    "seed": 2,
    "code_version": _CODE_VERSION,
    "parent": None,
    "policy": None,
    "adaptation": None,
    "task": None,
    "method": None,
}

ALIAS: dict[str, Any] = {
    "model": "cartpole",
    "alias": "champion",
    "version": 3,
    "updated_at": "2026-11-23T06:48:33.999328Z",
}

ALIAS_EVENT: dict[str, Any] = {
    "action": "set",
    "version": 3,
    "previous_version": 2,
    "at": "2026-11-23T06:48:34.000274Z",
    "by": "admin",
}
