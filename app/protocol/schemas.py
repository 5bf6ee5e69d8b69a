"""Metadata and statistics of the Open Inference Protocol on the wire; what is inferred is in :mod:`tensors`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ConfigDict

from app.protocol.examples import OBSERVATION, OUTPUTS, STATISTICS
from app.protocol.statistics import ModelStatistics
from app.protocol.tensors import OBSERVATION as INPUT
from app.protocol.tensors import outputs_of
from app.validation import Schema
from models.runtime import Architecture


class ServerMetadata(Schema):
    """What server this is, and which extensions of the protocol it has."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "headstart",
                    "version": "0.1.0",
                    "extensions": ["binary_tensor_data", "parameters", "statistics"],
                }
            ]
        }
    )

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Schema):
    """A tensor; -1 in its shape is as many as you like."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Schema):
    """A policy or a version of a model: what goes in and what comes out.

    ``versions`` may be asked for: of a model its newest 1,000, of a policy its newest revision. ``observation`` may
    come in other datatypes too.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "cartpole",
                    "versions": ["1", "2", "3"],
                    "platform": "headstart",
                    "inputs": [OBSERVATION],
                    "outputs": OUTPUTS,
                }
            ]
        }
    )

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]

    @classmethod
    def of(cls, name: str, versions: list[str], architecture: Architecture) -> ModelMetadata:
        """The metadata of a policy or version of this architecture."""
        inputs = {INPUT: ("FP32", (architecture.observation_size,))}
        return cls(
            name=name,
            versions=versions,
            platform="headstart",
            inputs=_tensors(inputs),
            outputs=_tensors(outputs_of(architecture)),
        )


def _tensors(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[TensorMetadata]:
    return [
        TensorMetadata(name=name, datatype=datatype, shape=[-1, *shape]) for name, (datatype, shape) in tensors.items()
    ]


class ModelReady(Schema):
    """A policy or model that can be asked: it is in memory now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "cartpole", "ready": True}]})

    name: str
    ready: bool


class StatisticsBody(Schema):
    """What was asked through `/v2` of this process since it started."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_stats": [STATISTICS]}]})

    model_stats: list[ModelStatistics]


class IndexQuery(Schema):
    """Which models to list; all are ready, so both say the same."""

    ready: bool = False


class IndexEntry(Schema):
    """A version of a model, or a policy at its newest revision, that can be asked."""

    name: str
    version: str
    state: str = "READY"
    reason: str = ""
