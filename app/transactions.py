"""One request, one transaction, committed before the answer is sent; and POSTs that may be sent again.

A router opts in with ``APIRouter(route_class=TransactionalRoute)``. Its endpoints declare
``session: RequestSession``; an endpoint that streams declares ``database: RequestDatabase`` instead and makes short
transactions of its own; one that waits does so in :func:`answer_after_commit`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ParamSpec, cast

from anyio import CancelScope
from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy import ColumnElement, CursorResult, delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.auth import Principal
from app.bodies import JSONRequest
from app.database import Database, new_id, now
from app.dependencies import database_of
from app.errors import BadRequest, Conflict, Invalid
from app.tables import IdempotencyKey
from app.validation import name_known_fields, pointer_to

STALE_AFTER = timedelta(seconds=60)
"""A claim this old belongs to a process that died; the next request of that key takes it over."""

KEPT_FOR = timedelta(hours=24)
"""Time for which an answer is given again."""

_KEPT_HEADERS = ("content-type", "location", "etag")

Answer = Callable[[], Awaitable[Response]]
"""Makes the answer to a request whose transaction is over."""

P = ParamSpec("P")


async def _request_session(request: Request) -> Session:
    if request.state.session is None:
        # A GET takes no write lock; whatever else may write has it from its first statement.
        request.state.session = database_of(request).session(read_only=request.method in ("GET", "HEAD"))
    session: Session = request.state.session
    return session


RequestSession = Annotated[Session, Depends(_request_session)]
"""The request's session: read-only in a GET; committed before the answer is sent, rolled back on any error.

Only the endpoint itself may use it, no synchronous dependency: what holds a lock must not wait for a thread.
"""


def answer_after_commit(request: Request, answer: Answer) -> None:
    """Send what ``answer`` gives instead of what the endpoint returned.

    It is awaited when the transaction is committed and over, so it may wait as long as it likes; the endpoint itself
    must not. What the endpoint returned is what a repeated request gets if this process dies while it waits.
    """
    request.state.answer_after_commit = answer


def withhold_on_replay(request: Request, *members: str) -> None:
    """Keep these members of the answer's object out of what is stored for repeated requests: they are secrets."""
    request.state.withheld = members


_IDEMPOTENCY_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes the request safe to repeat for a day: the same key with the same body gives the first answer "
    "again; with another body, 422; while the first is still running, 409.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


class TransactionalRoute(APIRoute):
    """A route that runs its endpoint in one transaction and honours ``Idempotency-Key`` on POST."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in (options.get("methods") or ()):
            extra = options.get("openapi_extra") or {}
            options["openapi_extra"] = {**extra, "parameters": [_IDEMPOTENCY_KEY_PARAMETER]}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()
        annotation = self.body_field.field_info.annotation if self.body_field else None
        parameters = _query_parameters(self.dependant)

        async def load(request: Request) -> JSONRequest:
            request = JSONRequest(request.scope, request.receive)
            for name in request.query_params:
                if name not in parameters:
                    known = ", ".join(sorted(parameters)) or "none"
                    raise Invalid(pointer_to(name), f"unknown parameter; known: {known}")
            if self.body_field is not None:
                await request.load()
            request.state.session = None
            request.state.answer_after_commit = None
            request.state.withheld = ()
            return request

        async def checked(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                name_known_fields(error, annotation)
                raise

        async def serve(request: Request) -> Response:
            request = await load(request)
            if request.method in ("GET", "HEAD"):
                return await _in_one_transaction(request, checked)
            key = request.headers.get("idempotency-key") if request.method == "POST" else None
            if key is None:
                return await _write(request, lambda: _in_one_transaction(request, checked))
            return await _once(request, key, checked)

        return serve


def _query_parameters(dependant: Dependant) -> set[str]:
    names = {parameter.alias for parameter in dependant.query_params}
    return names.union(*(_query_parameters(inner) for inner in dependant.dependencies))


async def _finish(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    # Also when the server is stopping: what was begun is ended.
    with CancelScope(shield=True):
        await run_in_threadpool(work, *args, **kwargs)


async def _write(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    # Few at a time: endpoints that wait for a lock must not take every thread, or the transaction that holds the lock
    # finds none to go on in.
    async with request.app.state.writers:
        response = await work()
    answer: Answer | None = request.state.answer_after_commit
    return response if answer is None else await answer()


async def _in_one_transaction(
    request: Request,
    handle: Callable[[Request], Awaitable[Response]],
    before_commit: Callable[[Session, Response], None] | None = None,
) -> Response:
    try:
        response = await handle(request)
        session: Session | None = request.state.session
        if session is not None:
            await _finish(_commit, session, response, before_commit)
    finally:
        if request.state.session is not None:
            await _finish(request.state.session.close)
    return response


def _commit(session: Session, response: Response, before_commit: Callable[[Session, Response], None] | None) -> None:
    if response.status_code >= 400:
        session.rollback()
        return
    if before_commit is not None:
        before_commit(session, response)
    session.commit()


async def _once(request: Request, key: str, handle: Callable[[Request], Awaitable[Response]]) -> Response:
    if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise BadRequest("Idempotency-Key must have 1 to 255 printable ASCII characters")
    principal: Principal = request.scope["headstart.principal"]
    claim = _Claim(
        place=(principal.id, request.method, request.scope["path"], key),
        fingerprint=hashlib.sha256(request.scope["query_string"] + b"?" + await request.body()).hexdigest(),
        id=new_id(),
    )
    database = database_of(request)

    async def work() -> Response:
        if (standing := await run_in_threadpool(claim.take, database)) is not None:
            return standing
        # The answer is stored in the request's own transaction, even where the endpoint does without a session.
        await _request_session(request)
        try:
            response = await _in_one_transaction(
                request, handle, lambda session, first: claim.store(session, first, request.state.withheld)
            )
        except BaseException:
            await _finish(claim.release, database)
            raise
        if response.status_code >= 400:
            await _finish(claim.release, database)
        return response

    response = await _write(request, work)
    if request.state.answer_after_commit is not None and response.status_code < 400:
        await _finish(claim.store_later, database, response, request.state.withheld)
    return response


@dataclass(frozen=True)
class _Claim:
    """One request's hold on an idempotency key: the row says who works on it and what the answer was."""

    place: tuple[str, str, str, str]
    fingerprint: str
    id: str

    def take(self, database: Database) -> Response | None:
        """Claim the key, committed at once; or the answer that stands.

        Raises:
            Conflict: If another request holds the claim.
            Invalid: If the key came with another body.
        """
        api_key_id, method, path, key = self.place
        row = IdempotencyKey(
            api_key_id=api_key_id,
            method=method,
            path=path,
            key=key,
            fingerprint=self.fingerprint,
            claim=self.id,
        )
        try:
            with database.transaction() as session:
                session.add(row)
            return None
        except IntegrityError:
            with database.transaction() as session:
                standing = session.get(IdempotencyKey, self.place, with_for_update=True)
                return self._answer_again(standing)

    def _answer_again(self, row: IdempotencyKey | None) -> Response | None:
        busy = Conflict("a request with this Idempotency-Key is still running; try again", headers={"Retry-After": "1"})
        if row is None:
            # It failed and was released between the two looks.
            raise busy
        age = now() - row.claimed_at
        if age < KEPT_FOR and row.fingerprint != self.fingerprint:
            raise Invalid("", "this Idempotency-Key was used with another body")
        if row.state == "done" and age < KEPT_FOR:
            headers = {**(row.headers or {}), "idempotency-replayed": "true"}
            return Response((row.body or "").encode(), row.status or 200, headers)
        if row.state == "running" and age < STALE_AFTER:
            raise busy
        row.state, row.fingerprint, row.claim, row.claimed_at = "running", self.fingerprint, self.id, now()
        return None

    def store(self, session: Session, response: Response, withheld: tuple[str, ...]) -> None:
        """Keep the answer, in the transaction of the work; a claim that was taken over undoes both.

        Raises:
            Conflict: If another request has taken the claim over.
        """
        if not self._keep(session, "running", response, withheld):
            raise Conflict("another request with this Idempotency-Key took over; try again")

    def store_later(self, database: Database, response: Response, withheld: tuple[str, ...]) -> None:
        """Replace the stored answer by the one that was sent in the end."""
        with database.transaction() as session:
            self._keep(session, "done", response, withheld)

    def release(self, database: Database) -> None:
        """Give the key back after a failure: a repeated request is then a first one."""
        with database.transaction() as session:
            session.execute(delete(IdempotencyKey).where(*self._held("running")))

    def _keep(self, session: Session, state: str, response: Response, withheld: tuple[str, ...]) -> bool:
        body = bytes(response.body).decode()
        if withheld:
            body = json.dumps({name: value for name, value in json.loads(body).items() if name not in withheld})
        headers = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
        kept = {"state": "done", "status": response.status_code, "headers": headers, "body": body}
        statement = update(IdempotencyKey).where(*self._held(state)).values(kept)
        return cast(CursorResult[Any], session.execute(statement)).rowcount == 1

    def _held(self, state: str) -> tuple[ColumnElement[bool], ...]:
        api_key_id, method, path, key = self.place
        return (
            IdempotencyKey.api_key_id == api_key_id,
            IdempotencyKey.method == method,
            IdempotencyKey.path == path,
            IdempotencyKey.key == key,
            IdempotencyKey.claim == self.id,
            IdempotencyKey.state == state,
        )


def purge_idempotency_keys(session: Session) -> None:
    """Delete the answers that are kept no longer."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.claimed_at < now() - KEPT_FOR))
