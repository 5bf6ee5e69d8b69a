"""What can go wrong, as types; the one table of their HTTP statuses; problem+json answers (RFC 9457)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.validation import FieldError, field_errors
from models.types import InvalidValue

logger = logging.getLogger(__name__)

MAX_DETAIL = 600
"""Characters of a detail that are sent; what a caller wrote may be long."""


class HeadstartError(Exception):
    """A condition that callers are told of. Raise one of its subclasses.

    Attributes:
        detail: What is wrong and what would be right, for a person.
        errors: The members at fault, where there are any.
        headers: HTTP headers that belong to the answer.
    """

    def __init__(
        self, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(HeadstartError):
    """The request cannot be read: its JSON, a header, a page token."""


class Unauthenticated(HeadstartError):
    """No key, or one that is unknown, expired or revoked."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(HeadstartError):
    """The key stands but lacks a scope."""


class NotFound(HeadstartError):
    """Nothing of that name or id."""


class Gone(NotFound):
    """What was there and is no more; the detail says since when."""


class Conflict(HeadstartError):
    """What stands is against it."""


class TooSlow(HeadstartError):
    """The caller did not send its request in time."""


class PreconditionFailed(HeadstartError):
    """The thing has changed since the caller last saw it."""


class PayloadTooLarge(HeadstartError):
    """A body above the limit."""


class UnsupportedMediaType(HeadstartError):
    """A body of another kind than the operation reads."""


class RangeNotSatisfiable(HeadstartError):
    """A range that starts after the end of the file."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the file has {size_bytes} bytes", headers={"Content-Range": f"bytes */{size_bytes}"})


class Invalid(HeadstartError):
    """A request that can be read but not accepted.

    Args:
        pointer: JSON pointer to the member at fault; "" is the whole body.
        detail: What is wrong with it.
    """

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}" if pointer else detail, errors=[FieldError(pointer, detail)])

    @classmethod
    def all_of(cls, errors: Sequence[FieldError]) -> Invalid:
        """One error for several members."""
        error = cls(errors[0].pointer, errors[0].detail)
        error.errors = tuple(errors)
        if len(errors) > 1:
            error.detail += f" (and {len(errors) - 1} more)"
        return error


class Corrupt(HeadstartError):
    """Stored bytes are not the ones that were stored."""


class CannotDraw(HeadstartError):
    """This machine lacks something that drawing an environment needs."""


class StorageFull(HeadstartError):
    """No room to write an artefact."""


class Unavailable(HeadstartError):
    """The service cannot answer now but may soon."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class Busy(Unavailable):
    """More is asked of the service than it can do at a time."""


@dataclass(frozen=True)
class Problem:
    """How an error is answered: the status and the title of its kind."""

    status: int
    title: str


PROBLEMS: dict[type[HeadstartError], Problem] = {
    BadRequest: Problem(400, "The request cannot be read"),
    Unauthenticated: Problem(401, "A valid API key is needed"),
    Forbidden: Problem(403, "The API key lacks a scope"),
    NotFound: Problem(404, "Not found"),
    TooSlow: Problem(408, "The request came too slowly"),
    Conflict: Problem(409, "In conflict with what stands"),
    Gone: Problem(410, "No longer there"),
    PreconditionFailed: Problem(412, "Changed since it was last seen"),
    PayloadTooLarge: Problem(413, "The body is too large"),
    UnsupportedMediaType: Problem(415, "The body is of the wrong kind"),
    RangeNotSatisfiable: Problem(416, "The range cannot be satisfied"),
    Invalid: Problem(422, "The request is not valid"),
    Corrupt: Problem(500, "An artefact is corrupt"),
    CannotDraw: Problem(501, "This server cannot draw it"),
    Unavailable: Problem(503, "Temporarily unavailable"),
    StorageFull: Problem(507, "No space left to store an artefact"),
}
"""Every kind of error and its status. A subclass is answered as its nearest parent here."""


@dataclass(frozen=True)
class ProblemDocument:
    """A problem as it is sent: the members of RFC 9457, and HTTP headers that belong to it."""

    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def status(self) -> int:
        """The HTTP status."""
        status: int = self.body["status"]
        return status


def problem_of(error: Exception) -> ProblemDocument:
    """What is told of any exception; one that nobody expected becomes a 500 and is logged."""
    if isinstance(error, HTTPException):
        return _http_exception(error)
    known = _as_headstart_error(error)
    if known is None:
        logger.error("unexpected error", exc_info=error)
        return _problem(500, "internal-error", "Internal error", "the server failed; its log says more", [], {})
    kind = next(kind for kind in type(known).__mro__ if kind in PROBLEMS)
    problem = PROBLEMS[kind]
    if problem.status >= 500 and not isinstance(known, Busy):
        logger.error("%s: %s", problem.title, known.detail, exc_info=error)
    slug = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
    return _problem(problem.status, slug, problem.title, known.detail, known.errors, known.headers)


def problem_response(error: Exception, scope: Scope) -> Response:
    """The problem+json answer to any exception; under `/v2` with the message as the protocol there has it, too."""
    problem = problem_of(error)
    body = problem.body
    if f"{scope['path']}/".startswith("/v2/"):
        body = {"error": body["detail"]} | body
    # ASCII only: what a caller sent may hold characters that UTF-8 cannot.
    content = json.dumps(body, ensure_ascii=True).encode("ascii")
    return Response(content, problem.status, dict(problem.headers), media_type="application/problem+json")


def _as_headstart_error(error: Exception) -> HeadstartError | None:
    match error:
        case HeadstartError():
            return error
        case InvalidValue():
            return Invalid(error.pointer, error.detail)
        case RequestValidationError():
            return Invalid.all_of(field_errors(error))
        case IntegrityError():
            logger.warning("a constraint was violated by a concurrent request", exc_info=error)
            return Conflict("another request changed the same thing at the same time; try again")
        case DataError():
            logger.warning("the database refused a value", exc_info=error)
            return Invalid("", "a value is outside the range that can be stored")
        case OperationalError() | PoolTimeout():
            return Unavailable("the database does not answer; try again")
        case _:
            return None


def _http_exception(error: HTTPException) -> ProblemDocument:
    slugs = {404: "not-found", 405: "method-not-allowed"}
    details = {404: "there is no such path", 405: "the path does not take this method"}
    return _problem(
        error.status_code,
        slugs.get(error.status_code, "http-error"),
        PROBLEMS[NotFound].title if error.status_code == 404 else "The request cannot be served",
        details.get(error.status_code, str(error.detail)),
        [],
        error.headers or {},
    )


def _problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError],
    headers: Mapping[str, str],
) -> ProblemDocument:
    body: dict[str, Any] = {"type": f"/problems/{slug}", "title": title, "status": status, "detail": shorten(detail)}
    if errors:
        body["errors"] = [{"pointer": shorten(e.pointer), "detail": shorten(e.detail)} for e in errors]
    return ProblemDocument(body, headers)


def shorten(text: str) -> str:
    """The text, cut to what an answer may carry of a caller's own words."""
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


class ProblemMiddleware:
    """Answers whatever escapes from the application with a problem, so that no error ends as plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        started = False

        async def observe(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, observe)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await problem_response(error, scope)(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Answer the framework's own errors as problems too; the others reach :class:`ProblemMiddleware`."""

    async def answer(request: Request, error: Exception) -> Response:
        return problem_response(error, request.scope)

    for kind in (HTTPException, RequestValidationError, HeadstartError, InvalidValue):
        app.add_exception_handler(kind, answer)
