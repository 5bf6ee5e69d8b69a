"""An evaluation as the OpenAPI document shows it: what a service answered, its numbers rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.adaptation import InnerLoop
from models.checkpoint import to_json


def _estimate(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high}


def _mean(mean: float, interquartile: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": _estimate(mean, low, high), "interquartile_mean": _estimate(interquartile, low, high)}


def _subject(
    before: dict[str, Any],
    after: dict[str, Any],
    gain: dict[str, Any],
    worse: dict[str, float],
    tasks: Sequence[tuple[float, float, float, float]],
) -> dict[str, Any]:
    together = {
        "axis": "step",
        "curve": [{"place": 0} | before, {"place": 1} | after],
        "before": before,
        "after": after,
        "gain": gain,
        "worse": worse,
        "regret": None,
        "gap": None,
        "threshold": None,
    }
    names = ("before", "after", "gain", "worse")
    unmeasured = {"regret": None, "median_environment_steps": None}
    return together | {
        "groups": {"in_range": together, "out_of_range": None},
        "tasks": [dict(zip(names, numbers, strict=True)) | unmeasured for numbers in tasks],
    }


def _task(name: str, *parameters: float) -> dict[str, Any]:
    names = ("force_mag", "gravity", "length", "masscart", "masspole", "tau")
    return {
        "name": name,
        "id": None,
        "environment": "CartPole-v1",
        "parameters": dict(zip(names, parameters, strict=True)),
        "in_range": True,
        "oracle": None,
    }


SUMMARY: dict[str, Any] = {
    "id": "01a20729-d51c-78d7-afbc-7650c0e12081",
    "state": "succeeded",
    "attempts": 1,
    "error": None,
    "cancel_requested": False,
    "created_at": "2026-11-23T06:48:31.784398Z",
    "started_at": "2026-11-23T06:48:31.789295Z",
    "finished_at": "2026-11-23T06:48:33.978201Z",
    "name": "cartpole-nightly",
    "progress": {"done": 8, "total": 8},
    "verdict": "better",
    "leakage": [],
    "warnings": [],
    "protocol": {
        "name": "cartpole-nightly",
        "subjects": [
            {"name": "cartpole/3", "version": "cartpole/3"},
            {"name": "cartpole@champion", "version": "cartpole/2"},
        ],
        "scratch": False,
        "multitask": None,
        "tasks": {"family": "cartpole-physics", "split": "test", "count": 2, "seed": 0},
        "training_tasks": 0,
        "methods": [to_json(InnerLoop())],
        "seeds": 2,
        "seed": 0,
        "threshold": None,
    },
}

_RESULT: dict[str, Any] = {
    "tasks": [
        _task("test-0", 8.3364, 8.2375, 0.4817, 1.4689, 0.1008, 0.02),
        _task("test-1", 11.1919, 10.4509, 0.5407, 0.5148, 0.1481, 0.02),
    ],
    "training_tasks": [],
    "subjects": {
        "cartpole/3": {"kind": "version", "label": "cartpole/3"},
        "cartpole@champion": {"kind": "version", "label": "cartpole/2"},
    },
    "methods": {
        "inner-loop": {
            "axis": "step",
            "subjects": {
                "cartpole/3": _subject(
                    before=_mean(110.1375, 108.675, 104.45, 115.825),
                    after=_mean(127.4, 128.15, 121.225, 133.575),
                    gain=_mean(17.2625, 20.425, 10.825, 23.7),
                    worse=_estimate(0.0, 0.0, 0.0),
                    tasks=[(108.675, 122.775, 14.1, 0.0), (111.6, 132.025, 20.425, 0.0)],
                ),
                "cartpole@champion": _subject(
                    before=_mean(41.9, 40.6, 38.075, 45.725),
                    after=_mean(48.25, 47.25, 43.225, 53.275),
                    gain=_mean(6.35, 5.15, 3.125, 9.575),
                    worse=_estimate(0.25, 0.0, 0.5),
                    tasks=[(47.025, 47.25, 0.225, 0.5), (36.775, 49.25, 12.475, 0.0)],
                ),
            },
            "comparisons": [
                {
                    "first": "cartpole/3",
                    "second": "cartpole@champion",
                    "difference": _estimate(79.15, 67.95, 90.35),
                    "probability": _estimate(1.0, 1.0, 1.0),
                    "verdict": "better",
                }
            ],
        }
    },
}

EVALUATION: dict[str, Any] = SUMMARY | {
    "result": _RESULT,
    "files": [
        {
            "name": "evaluation.json",
            "sha256": "0eaedded5d0208e566dd9dbd87d7ae34c26106c83092cff9abc2f76cca67cdca",
            "size_bytes": 7243,
        },
        {
            "name": "report.html",
            "sha256": "16daac79b3902cac6b271e067af9077888b4b6ed976cf551d5e413b05d9eb337",
            "size_bytes": 346033,
        },
        {
            "name": "runs.csv",
            "sha256": "5c9724d68f4f5716506666d1e18f5edaf4b626dec284bb056bd9dc5240e6e8b1",
            "size_bytes": 1306,
        },
    ],
}
