"""The HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.adaptations.routes import events_router
from app.adaptations.routes import router as adaptations_router
from app.auth import REFRESH_S, AuthenticationMiddleware, KeyRing
from app.bodies import BodyLimitMiddleware
from app.database import Database
from app.dependencies import RequestDatabase
from app.documentation import document_configs
from app.errors import ProblemMiddleware, Unavailable, add_error_handlers
from app.evaluations.routes import router as evaluations_router
from app.inference import Act, PolicyBank, describe, is_act
from app.keys.routes import router as keys_router
from app.policies.rollouts import Theatre
from app.policies.routes import router as policies_router
from app.preparation import prepare
from app.registry.routes import router as registry_router
from app.runs.routes import router as runs_router
from app.settings import Settings
from app.store import ArtefactStore
from app.tasks.routes import router as tasks_router
from app.transactions import purge_idempotency_keys
from models.environments.bridge import configure

logger = logging.getLogger(__name__)

ROUTERS = (
    tasks_router,
    runs_router,
    registry_router,
    adaptations_router,
    events_router,
    policies_router,
    evaluations_router,
    keys_router,
)
"""Everything under /v1."""

_PURGE_S = 3600.0

_PROBLEM: dict[str, Any] = {
    "description": "A problem (RFC 9457)",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string", "format": "uri-reference"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["pointer", "detail"],
                            "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
                        },
                    },
                },
            },
            "example": {
                "type": "/problems/invalid",
                "title": "The request is not valid",
                "status": 422,
                "detail": "/stop/seconds: must be greater than 0",
                "errors": [{"pointer": "/stop/seconds", "detail": "must be greater than 0"}],
            },
        }
    },
}

health = APIRouter(prefix="/v2/health", tags=["health"])


@health.get("/live")
async def is_live() -> dict[str, bool]:
    """Whether the process answers at all."""
    return {"live": True}


@health.get("/ready", responses={503: _PROBLEM})
def is_ready(database: RequestDatabase) -> dict[str, bool]:
    """Whether the process can do its work: its database answers."""
    try:
        database.ping()
    except Exception as error:
        raise Unavailable("the database does not answer") from error
    return {"ready": True}


class Application(FastAPI):
    """The framework's application, except that `:act` is answered without the framework's layers."""

    acting: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if is_act(scope):
            await self.acting(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application over these settings; it opens nothing before it is started."""
    configure(settings.environment_modules, settings.environment_timeout)
    database = Database(settings.database_url)
    keys = KeyRing(database)
    store = ArtefactStore(settings.artefacts)
    bank = PolicyBank(database, store)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(prepare, database, settings)
        app.state.theatre = Theatre(database, store)
        # SQLite has one writer: more would only wait in threads.
        app.state.writers = anyio.Semaphore(4 if database.engine.dialect.name == "sqlite" else 16)
        stopping = asyncio.Event()
        chores = [
            asyncio.create_task(_repeat(keys.refresh, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(bank.refresh, REFRESH_S, stopping)),
            asyncio.create_task(_repeat(lambda: _purge(database), _PURGE_S, stopping)),
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
        generate_unique_id_function=_operation_id,
        responses={"4XX": _PROBLEM},
    )
    app.state.settings = settings
    app.state.database = database
    app.state.keys = keys
    app.state.store = store
    app.state.bank = bank
    for router in ROUTERS:
        app.include_router(router, prefix="/v1")
    app.include_router(health)
    add_error_handlers(app)
    openapi = app.openapi
    app.openapi = lambda: _with_problems(document_configs(describe(openapi())))  # type: ignore[method-assign]
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(AuthenticationMiddleware, keys=keys)
    app.add_middleware(ProblemMiddleware)
    limited = BodyLimitMiddleware(Act(bank), settings.max_body_bytes)
    app.acting = ProblemMiddleware(AuthenticationMiddleware(limited, keys))
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _purge(database: Database) -> None:
    with database.transaction() as session:
        purge_idempotency_keys(session)


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].setdefault("4XX", _PROBLEM)
    return schema


async def _repeat(chore: Callable[[], object], seconds: float, stopping: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), seconds)
            return
        try:
            await run_in_threadpool(chore)
        except Exception:
            logger.exception("a chore failed; it is tried again in %g s", seconds)
