"""Metadata, statistics and index of the Open Inference Protocol over HTTP; inference: :mod:`app.protocol.inference`."""

from importlib.metadata import version as installed_version
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Request, Response

from app.auth import Caller
from app.dependencies import RequestDatabase
from app.pagination import RequestPage
from app.protocol import service
from app.protocol.catalogue import Catalogue, Served
from app.protocol.examples import INDEX
from app.protocol.schemas import (
    IndexEntry,
    IndexQuery,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    StatisticsBody,
)
from app.protocol.statistics import ModelStatistics, Statistics

router = APIRouter(tags=["inference-protocol"])

ModelName = Annotated[str, Path(description="A policy's id; or a model's name, or `model@alias`.")]
ModelVersion = Annotated[
    str, Path(description="A policy's newest revision; or the number of one of a model's versions.")
]

IndexBody = Annotated[IndexQuery | None, Body(openapi_examples={"ready": {"value": {"ready": True}}})]

_EXTENSIONS = ["binary_tensor_data", "parameters", "statistics"]


async def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


async def _statistics(request: Request) -> Statistics:
    statistics: Statistics = request.app.state.statistics
    return statistics


RequestCatalogue = Annotated[Catalogue, Depends(_catalogue)]
RequestStatistics = Annotated[Statistics, Depends(_statistics)]


async def _newest(model: ModelName, catalogue: RequestCatalogue, _: Caller) -> Served:
    return await catalogue.find(model)


async def _of_version(model: ModelName, version: ModelVersion, catalogue: RequestCatalogue, _: Caller) -> Served:
    return await catalogue.find(model, version)


Newest = Annotated[Served, Depends(_newest)]
OfVersion = Annotated[Served, Depends(_of_version)]


@router.get("")
async def get_server_metadata(_: Caller) -> ServerMetadata:
    """What server this is, and which extensions it has."""
    return ServerMetadata(name="headstart", version=installed_version("headstart"), extensions=_EXTENSIONS)


# Before the models: the first path that fits is taken.
@router.get("/models/stats")
async def list_model_statistics(statistics: RequestStatistics, _: Caller) -> StatisticsBody:
    """What was asked of this process, of the 1,000 models that were asked last."""
    return StatisticsBody(model_stats=statistics.all())


@router.get("/models/{model}")
async def get_model_metadata(served: Newest, catalogue: RequestCatalogue) -> ModelMetadata:
    """A policy, or a model's newest version: what goes in and what comes out."""
    return await _metadata(served, catalogue)


@router.get("/models/{model}/versions/{version}")
async def get_model_version_metadata(served: OfVersion, catalogue: RequestCatalogue) -> ModelMetadata:
    """A version of a model: what goes in and what comes out."""
    return await _metadata(served, catalogue)


@router.get("/models/{model}/ready")
async def is_model_ready(served: Newest) -> ModelReady:
    """Whether a policy, or a model's newest version, can be asked; it comes into memory if need be."""
    return ModelReady(name=served.name, ready=True)


@router.get("/models/{model}/versions/{version}/ready")
async def is_model_version_ready(served: OfVersion) -> ModelReady:
    """Whether a version of a model can be asked; it comes into memory if need be."""
    return ModelReady(name=served.name, ready=True)


@router.get("/models/{model}/stats")
async def get_model_statistics(served: Newest, statistics: RequestStatistics) -> StatisticsBody:
    """What was asked of this process: of all versions of a model, or all revisions of a policy."""
    return _body(served, statistics.of(served.name))


@router.get("/models/{model}/versions/{version}/stats")
async def get_model_version_statistics(served: OfVersion, statistics: RequestStatistics) -> StatisticsBody:
    """What was asked of this process: of one version."""
    return _body(served, statistics.of(served.name, served.version))


@router.post("/repository/index", responses={200: {"content": {"application/json": {"example": INDEX}}}})
def list_served_models(
    database: RequestDatabase, page: RequestPage, _: Caller, response: Response, __: IndexBody = None
) -> list[IndexEntry]:
    """What can be asked: versions of models and then policies, each newest first.

    A list in pages: the header `Headstart-Next-Page-Token` is the `page_token` of the next, and absent on the last.
    """
    with database.snapshot() as session:
        served, token = service.list_served(session, page)
    if token is not None:
        response.headers["Headstart-Next-Page-Token"] = token
    return [IndexEntry(name=name, version=version) for name, version in served]


async def _metadata(served: Served, catalogue: Catalogue) -> ModelMetadata:
    versions = await catalogue.versions(served)
    return ModelMetadata.of(served.name, versions, served.entry.policy.architecture)


def _body(served: Served, asked: list[ModelStatistics]) -> StatisticsBody:
    return StatisticsBody(model_stats=asked or [ModelStatistics(served.name, served.version)])
