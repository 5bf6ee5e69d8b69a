"""The HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache, partial
from importlib.metadata import version

import anyio
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.acting import Acting
from app.acting import describe as describe_acting
from app.adaptations.routes import events_router
from app.adaptations.routes import router as adaptations_router
from app.auth import REFRESH_S, AuthenticationMiddleware, KeyRing
from app.bodies import Bodies, BodyMiddleware, time_for
from app.database import Database
from app.dependencies import RequestDatabase
from app.documentation import complete
from app.errors import ProblemMiddleware, Unavailable, add_error_handlers
from app.evaluations.routes import router as evaluations_router
from app.inference import PolicyBank
from app.keys.routes import router as keys_router
from app.policies.rollouts import Theatre
from app.policies.routes import router as policies_router
from app.preparation import prepare
from app.protocol.catalogue import Catalogue
from app.protocol.inference import Inferring
from app.protocol.inference import describe as describe_inferring
from app.protocol.routes import router as protocol_router
from app.protocol.statistics import Statistics
from app.registry.routes import router as registry_router
from app.runs.routes import router as runs_router
from app.settings import Settings
from app.short_path import Load
from app.store import ArtefactStore
from app.streaming import Streaming
from app.tasks.routes import router as tasks_router
from app.transactions import purge_idempotency_keys
from models.environments.bridge import configure

logger = logging.getLogger(__name__)

_PURGE_S = 3600.0

health = APIRouter(prefix="/v2/health", tags=["health"])


@health.get("/live", responses={200: {"content": {"application/json": {"example": {"live": True}}}}})
async def is_live() -> dict[str, bool]:
    """Whether the process answers at all."""
    return {"live": True}


@health.get(
    "/ready",
    responses={
        200: {"content": {"application/json": {"example": {"ready": True}}}},
        503: {"description": "The database does not answer"},
    },
)
def is_ready(database: RequestDatabase) -> dict[str, bool]:
    """Whether the process can do its work: its database answers."""
    try:
        database.ping()
    except Exception as error:
        raise Unavailable("the database does not answer") from error
    return {"ready": True}


def _operation_id(route: APIRoute) -> str:
    return route.name


def _compose() -> APIRouter:
    # Of the responses: else the framework says what its own errors look like.
    api = APIRouter(responses={"4XX": {}}, generate_unique_id_function=_operation_id)
    for router in (
        tasks_router,
        runs_router,
        registry_router,
        adaptations_router,
        events_router,
        policies_router,
        evaluations_router,
        keys_router,
    ):
        api.include_router(router, prefix="/v1")
    api.include_router(health)
    api.include_router(protocol_router, prefix="/v2")
    return api


API = _compose()
"""Every route of the framework's; put together once for all applications of a process, because that takes a while."""


class Application(FastAPI):
    """The framework's application, except that acting is answered without the framework's layers."""

    acting: Acting
    inferring: Inferring
    streaming: Streaming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if Acting.answers(scope):
            await self.acting(scope, receive, send)
        elif Inferring.answers(scope):
            await self.inferring(scope, receive, send)
        elif Streaming.answers(scope):
            await self.streaming(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application over these settings; it opens nothing before it is started."""
    configure(settings.environment_modules, settings.environment_timeout)
    database = Database(settings.database_url)
    keys = KeyRing(database)
    store = ArtefactStore(settings.artefacts)
    bank = PolicyBank(database, store, settings.hot_bytes)
    catalogue, statistics = Catalogue(bank, database), Statistics()
    load = Load(settings.max_body_bytes, settings.max_in_flight, settings.act_timeout)
    bodies = Bodies(settings.max_body_bytes, time_for(settings.max_body_bytes))

    @contextlib.asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        await run_in_threadpool(prepare, database, settings)
        app.state.theatre = Theatre(database, store)
        # SQLite has one writer: more would only wait in threads.
        app.state.writers = anyio.Semaphore(4 if database.engine.dialect.name == "sqlite" else 16)
        stopping = asyncio.Event()
        chores = [
            asyncio.create_task(_repeat(partial(run_in_threadpool, keys.refresh), REFRESH_S, stopping)),
            asyncio.create_task(_repeat(bank.refresh, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(bodies.arrivals.end_overdue, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(load.bodies.arrivals.end_overdue, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(app.streaming.first.end_overdue, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(app.streaming.idle.end_overdue, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(partial(run_in_threadpool, _purge, database), _PURGE_S, stopping)),
        ]
        try:
            yield
        finally:
            # Not cancelled: the thread of a chore would go on, with a connection of a pool that is closed.
            stopping.set()
            await asyncio.gather(*chores)
            await run_in_threadpool(database.close)

    app = Application(
        title="Headstart",
        version=version("headstart"),
        description="Register tasks, meta-train, version, adapt, act.",
        lifespan=lifespan,
        redirect_slashes=False,
        routes=API.routes,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.keys = keys
    app.state.store = store
    app.state.bank = bank
    app.state.bodies = bodies
    app.state.catalogue = catalogue
    app.state.statistics = statistics
    add_error_handlers(app)
    openapi = app.openapi
    app.openapi = cache(lambda: complete(describe_inferring(describe_acting(openapi()))))  # type: ignore[method-assign]
    # The last one added is the outermost.
    app.add_middleware(BodyMiddleware, bodies=bodies)
    app.add_middleware(AuthenticationMiddleware, keys=keys)
    app.add_middleware(ProblemMiddleware)
    app.streaming = Streaming(bank, keys, load, settings.max_in_flight)
    app.acting = Acting(bank, keys, database, load)
    app.inferring = Inferring(catalogue, statistics, keys, load)
    return app


def _purge(database: Database) -> None:
    with database.transaction() as session:
        purge_idempotency_keys(session)


async def _repeat(chore: Callable[[], Awaitable[object]], seconds: float, stopping: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds)
            return
        try:
            await chore()
        except Exception:
            logger.exception("a chore failed; it is tried again in %g s", seconds)
