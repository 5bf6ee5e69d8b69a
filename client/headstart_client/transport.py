"""HTTP to one service: the key, when to try again, and what a refusal means. What sends is in ``_async``."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import httpx

from headstart_client.discovery import find_key
from headstart_client.errors import (
    ConnectionFailed,
    FieldError,
    HeadstartError,
    InvalidResponse,
    Problem,
    problem_class,
)

LONGEST_RETRY_AFTER_S = 60.0
PATIENT_ATTEMPTS = 13
HASTE_S = 2.0
NO_KEY = (
    "no key was found: give one (api_key, --key or HEADSTART_API_KEY), or, on the machine of the "
    "service, start where its data is ./var or set HEADSTART_DATA to it"
)


@dataclass(frozen=True)
class Retry:
    """How often, and after which pauses, a call that may be repeated is tried again.

    The pause after try ``n`` is drawn from the upper half of ``[0, min(longest_s, first_s * 2**n)]``, so that
    many clients of a service that comes back do not return in step. A longer ``Retry-After`` is obeyed, up to
    a minute; a still longer one ends the tries.

    Attributes:
        attempts: Tries in all, at least 1.
        first_s: Scale of the first pause, in seconds.
        longest_s: Ceiling of any pause, in seconds.
    """

    attempts: int = 5
    first_s: float = 0.25
    longest_s: float = 8.0

    def pause_s(self, attempt: int, error: HeadstartError) -> float | None:
        """Seconds to wait after failure number ``attempt`` (from 0), or ``None`` to give up."""
        asked_s = error.retry_after_s or 0.0
        if not error.transient or attempt + 1 >= self.attempts or asked_s > LONGEST_RETRY_AFTER_S:
            return None
        ceiling_s = min(self.longest_s, self.first_s * 2**attempt)
        return max(asked_s, random.uniform(ceiling_s / 2, ceiling_s))


class Key(httpx.Auth):
    """The key in every request. Where there is none it is looked for until a service that is just starting wrote it."""

    def __init__(self, url: httpx.URL, key: str | None) -> None:
        self._url = url
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign a request; once more, where it was refused before there was a key."""
        if not self._sign(request):
            # It may have waited for the service, which answers once its key is written.
            response = yield request
            if response.status_code != 401 or not self._sign(request):
                return
        yield request

    def found(self) -> str | None:
        """The key, looked for where none was given."""
        self._key = self._key or find_key(self._url)
        return self._key

    def _sign(self, request: httpx.Request) -> bool:
        key = self.found()
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return key is not None


def user_agent() -> str:
    """What this client calls itself."""
    return f"headstart-client/{version('headstart-client')}"


def no_answer(error: httpx.RequestError, url: httpx.URL) -> ConnectionFailed:
    """The exception for a request that was not answered."""
    if isinstance(error, httpx.TimeoutException):
        return ConnectionFailed(f"no answer from {url} in time ({type(error).__name__})")
    failure = ConnectionFailed(f"cannot reach {url}: {error or type(error).__name__}")
    failure.transient = not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
    return failure


def refusal(response: httpx.Response, keyed: bool = False) -> Problem:
    """The exception for a response to one of our requests.

    Args:
        response: That is not a success.
        keyed: Whether the request had an ``Idempotency-Key``.
    """
    problem = problem_of(response)
    # An earlier try with this key is still worked on, and its answer will be ours. Other conflicts stay.
    if keyed and problem.status == 409 and problem.retry_after_s is not None:
        problem.transient = True
    if problem.status == 401 and "Authorization" not in response.request.headers:
        problem.add_note(NO_KEY)
    return problem


def segment(text: str) -> str:
    """One quoted segment of a path.

    Raises:
        ValueError: If it is empty or a relative folder, and would so address something else.
    """
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is not a name")
    return quote(text, safe="")


def json_of(response: httpx.Response) -> Any:
    """The document in a successful response.

    Raises:
        InvalidResponse: If it is not JSON.
    """
    try:
        return response.json()
    except ValueError as error:
        raise InvalidResponse(f"{response.url} answered {response.status_code} without JSON") from error


def problem_of(response: httpx.Response) -> Problem:
    """The exception for a response that is not a success, whoever on the way sent it."""
    try:
        body = response.json()
    except ValueError:
        body = None
    status = response.status_code
    title = f"{status} {response.reason_phrase}".strip()
    if not isinstance(body, Mapping):
        target = response.headers.get("location")
        detail = f"redirected to {target}: use that address" if target and response.is_redirect else ""
        problem = problem_class(status)(status, title, detail or f"{response.url} answered {title}")
    else:
        problem = problem_from(body, status, title)
    problem.retry_after_s = retry_after_s(response.headers.get("retry-after"))
    return problem


def problem_from(body: Mapping[str, Any], status: int, title: str) -> Problem:
    """The exception for an object of problem+json; what it does not say is given."""
    fields = [e for e in body.get("errors") or () if isinstance(e, Mapping)]
    return problem_class(status)(
        status,
        str(body.get("title") or title),
        str(body.get("detail") or ""),
        tuple(FieldError(str(e.get("pointer", "")), str(e.get("detail", ""))) for e in fields),
        str(body.get("type") or "about:blank"),
        body,
    )


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given as a number or a date; ``None`` without one."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
