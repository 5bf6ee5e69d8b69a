"""Adaptations as the OpenAPI document shows them: what a service answered, its numbers rounded."""

from __future__ import annotations

from typing import Any

from app.tasks.examples import TASK
from models.adaptation import InnerLoop
from models.checkpoint import to_json

ADAPTATION: dict[str, Any] = {
    "id": "01a20729-e612-760c-a967-1f50b9c5ecb0",
    "state": "succeeded",
    "attempts": 1,
    "error": None,
    "cancel_requested": False,
    "created_at": "2026-11-23T06:48:36.114823Z",
    "started_at": "2026-11-23T06:48:36.120660Z",
    "finished_at": "2026-11-23T06:48:36.355210Z",
    "policy": "01a20729-e703-72af-8e1e-d21914ad977a",
    "revision": 0,
    "model": "cartpole",
    "version": 3,
    "start_policy": None,
    "task": TASK["id"],
    "before": {"mean_return": 108.9, "episodes": 20},
    "after": {"mean_return": 165.3, "episodes": 20},
    "curve": [
        {"episodes": 0, "environment_steps": 0, "mean_return": 108.9},
        {"episodes": 20, "environment_steps": 2571, "mean_return": 126.65},
        {"episodes": 40, "environment_steps": 4875, "mean_return": 122.95},
        {"episodes": 60, "environment_steps": 7712, "mean_return": 165.3},
    ],
    "seconds": 0.2279,
    "progress": {"fraction": 0.0, "environment_steps": 0, "episodes": 0, "seconds": 0.0},
    "metrics": {},
    "stopped_by": None,
    "method": to_json(InnerLoop(steps=3, episodes=20)),
    "seed": 7,
    "ttl_seconds": 86_400,
    "remote": None,
}

QUEUED: dict[str, Any] = ADAPTATION | {
    "state": "queued",
    "attempts": 0,
    "started_at": None,
    "finished_at": None,
    "policy": None,
    "before": None,
    "after": None,
    "curve": None,
    "seconds": None,
}

_SPACES: dict[str, Any] = {
    "observation_space": {"type": "box", "low": [None] * 4, "high": [None] * 4},
    "action_space": {"type": "discrete", "n": 2},
}

COLLECTING: dict[str, Any] = QUEUED | {
    "state": "collecting",
    "policy": ADAPTATION["policy"],
    "revision": 1,
    "task": {"remote": _SPACES | {"discount": 0.99, "horizon": 200, "reward_seconds": 3600}},
    "before": {"mean_return": 24.1, "episodes": 20},
    "curve": [{"episodes": 0, "environment_steps": 0, "mean_return": 24.1}],
    "seconds": 0.0187,
    "progress": {"fraction": 0.3333, "environment_steps": 482, "episodes": 20, "seconds": 0.0187},
    "remote": {
        "episodes": 21,
        "environment_steps": 484,
        "episodes_used": 20,
        "episodes_needed": 19,
        "environment_steps_needed": 0,
        "steps_taken": 1,
        "off_policy": 0.0,
        "events_expired": 0,
    },
}

UPLOADED_EPISODE: dict[str, Any] = {
    "id": "actor-1/7",
    "revision": 1,
    "steps": 2,
    "return": 2.0,
    "terminated": True,
    "truncated": False,
    "complete": True,
    "off_policy": None,
    "used_in": None,
    "created_at": "2026-11-23T06:48:37.201114Z",
}

REWARDED_EVENT: dict[str, Any] = {
    "event_id": "01a20729-f1aa-7d11-92c3-5b2f0a6d8e44",
    "adaptation": ADAPTATION["id"],
    "policy": ADAPTATION["policy"],
    "reward": 1.0,
}
