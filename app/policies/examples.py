"""Policies and episodes as the OpenAPI document shows them: what a service answered, its numbers rounded."""

from __future__ import annotations

from typing import Any

from app.adaptations.examples import ADAPTATION
from app.registry.examples import CARTPOLE_SPACES
from app.runs.examples import POLICY as ARCHITECTURE

POLICY: dict[str, Any] = {
    "id": ADAPTATION["policy"],
    "adaptation": ADAPTATION["id"],
    "model": "cartpole",
    "version": 3,
    "revision": 0,
    "task": ADAPTATION["task"],
    "environment": "CartPole-v1",
    "policy": ARCHITECTURE,
    **CARTPOLE_SPACES,
    "created_at": "2026-11-23T06:48:36.359021Z",
    "expires_at": "2026-11-24T06:48:36.358385Z",
    "files": [
        {
            "name": "policy.safetensors",
            "sha256": "929b6b6df61b258003da63735879c361d83f34ef669be9e7d1610fe666796aec",
            "size_bytes": 10572,
        }
    ],
}

ROLLOUT: dict[str, Any] = {
    "policy": "01a20729-e81b-7340-ac0f-e9fd57e40a79",
    "task": {
        "environment": "Navigation2D-v0",
        "parameters": {"goal_x": 0.25, "goal_y": 0.5, "radius": 0.2, "reward": "dense"},
        "reward": None,
        "discount": 0.99,
        "horizon": 3,
    },
    "seed": 0,
    "deterministic": True,
    "episodes": [
        {
            "observations": [[0.0, 0.0], [0.0345, 0.0317], [0.0698, 0.0639], [0.1058, 0.0966]],
            "states": [[0.0, 0.0], [0.0345, 0.0317], [0.0698, 0.0639], [0.1058, 0.0966]],
            "actions": [[0.0345, 0.0317], [0.0353, 0.0322], [0.0361, 0.0327]],
            "rewards": [-0.5155, -0.4719, -0.4284],
            "values": [-0.7527, -0.7671, -0.7814],
            "log_probs": [-1.7611, -1.7611, -1.7611],
            "terminated": False,
            "truncated": True,
            "return": -1.4158,
        }
    ],
}
