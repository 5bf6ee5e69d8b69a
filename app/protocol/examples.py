"""What the OpenAPI document shows of `/v2`: what a service answered, its numbers rounded."""

from __future__ import annotations

from typing import Any

from app.policies.examples import POLICY

OBSERVATION: dict[str, Any] = {"name": "observation", "datatype": "FP32", "shape": [-1, 4]}

OUTPUTS: list[Any] = [
    {"name": "action", "datatype": "INT64", "shape": [-1]},
    {"name": "log_prob", "datatype": "FP32", "shape": [-1]},
    {"name": "value", "datatype": "FP32", "shape": [-1]},
]

INDEX: list[Any] = [
    {"name": "cartpole", "version": "3", "state": "READY", "reason": ""},
    {"name": POLICY["id"], "version": "0", "state": "READY", "reason": ""},
]

REQUEST: dict[str, Any] = {
    "id": "42",
    "inputs": [{"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": [0.01, 0.0, 0.02, 0.0]}],
    "outputs": [{"name": "action"}, {"name": "value"}],
    "parameters": {"deterministic": False, "seed": 7},
}

RESPONSE: dict[str, Any] = {
    "id": "42",
    "model_name": "cartpole",
    "model_version": "3",
    "outputs": [
        {"name": "action", "datatype": "INT64", "shape": [1], "data": [1]},
        {"name": "value", "datatype": "FP32", "shape": [1], "data": [88.1]},
    ],
}

STATISTICS: dict[str, Any] = {
    "name": "cartpole",
    "version": "3",
    "last_inference": 1795416516709,
    "inference_count": 65,
    "execution_count": 2,
    "inference_stats": {
        "success": {"count": 2, "ns": 261000},
        "fail": {"count": 0, "ns": 0},
        "queue": {"count": 2, "ns": 9000},
        "compute_input": {"count": 2, "ns": 71000},
        "compute_infer": {"count": 2, "ns": 112000},
        "compute_output": {"count": 2, "ns": 69000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    },
    "batch_stats": [
        {
            "batch_size": size,
            "compute_input": {"count": 1, "ns": 35500},
            "compute_infer": {"count": 1, "ns": 56000},
            "compute_output": {"count": 1, "ns": 34500},
        }
        for size in (1, 64)
    ],
}
