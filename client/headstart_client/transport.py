"""HTTP to one service: the key, JSON, retries, pages and streams."""

from __future__ import annotations

import copy
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from headstart_client.discovery import find_key, is_on_this_machine
from headstart_client.errors import (
    ConnectionFailed,
    FieldError,
    HeadstartError,
    InvalidResponse,
    Problem,
    problem_class,
)
from headstart_client.wire import encode

T = TypeVar("T")
LONGEST_RETRY_AFTER_S = 60.0
PATIENT_ATTEMPTS = 13


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


class _Key(httpx.Auth):
    """The key in every request. Where there is none it is looked for until a service that is just starting wrote it."""

    def __init__(self, url: httpx.URL, key: str | None) -> None:
        self._url = url
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if not self._sign(request):
            # It may have waited for the service, which answers once its key is written.
            response = yield request
            if response.status_code != 401 or not self._sign(request):
                return
        yield request

    def _sign(self, request: httpx.Request) -> bool:
        self._key = self._key or find_key(self._url)
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return self._key is not None


class Transport:
    """One connection pool to one service; may be shared between threads."""

    def __init__(self, url: httpx.URL, key: str | None, timeout_s: float, retry: Retry) -> None:
        headers = {
            "User-Agent": f"headstart-client/{version('headstart-client')}",
            "Accept": "application/json",
        }
        self.url = url
        self.retry = retry
        self.timeout_s = timeout_s
        # A service on this machine is never asked through a proxy, which would see the admin key.
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=timeout_s,
            auth=_Key(url, key),
            trust_env=not is_on_this_machine(url),
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def patient(self) -> Transport:
        """The same connections, for work that a service may leave and come back to: retried for most of a minute."""
        patient = copy.copy(self)
        patient.retry = replace(self.retry, attempts=PATIENT_ATTEMPTS)
        return patient

    def repeat(self, work: Callable[[int], T]) -> T:
        """Do ``work(attempt)`` until it returns, pausing after transient failures; the last one is raised."""
        attempt = 0
        while True:
            try:
                return work(attempt)
            except HeadstartError as error:
                pause_s = self.retry.pause_s(attempt, error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        answer_within_s: float = 0.0,
    ) -> httpx.Response:
        """Send one request and return its successful response.

        Args:
            method: HTTP method.
            path: From the root of the service, segments quoted (:func:`segment`).
            query: Parameters; ``None`` values are left out.
            body: Sent as JSON unless ``None``.
            headers: Beside the usual ones.
            repeatable: Whether sending it twice has the effect of sending it once; only then is it retried.
            answer_within_s: How long the service was asked to work before it answers; added to the time
                limit.

        Raises:
            ConnectionFailed: If no answer came.
            Problem: If the service refused.
        """
        content = None if body is None else encode(body)
        sent = dict(headers or {})
        if content is not None:
            sent["Content-Type"] = "application/json"
        parameters = {name: value for name, value in (query or {}).items() if value is not None}

        def send(attempt: int) -> httpx.Response:
            with self._reported():
                response = self._http.request(
                    method,
                    path,
                    params=parameters,
                    content=content,
                    headers=sent,
                    timeout=self.timeout_s + answer_within_s,
                )
            # An earlier try deleted it, and its answer was lost.
            if response.is_success or (method == "DELETE" and attempt and response.status_code == 404):
                return response
            raise self._refusal(response, keyed="Idempotency-Key" in sent)

        return self.repeat(send) if repeatable else send(0)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON document at ``path``."""
        return json_of(self.request("GET", path, query=query))

    def create(
        self,
        path: str,
        body: object,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        answer_within_s: float = 0.0,
    ) -> Any:
        """POST something that creates; retries carry the same ``Idempotency-Key``, so that one is created."""
        sent = {**(headers or {}), "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return json_of(self.request("POST", path, body=body, headers=sent, answer_within_s=answer_within_s))

    def items(
        self, path: str, member: str, query: Mapping[str, Any] | None = None, page_size: int | None = 200
    ) -> Iterator[Any]:
        """The items of a list, fetched a page at a time as they are asked for."""
        parameters = {"page_size": page_size, **(query or {})}
        while True:
            page = self.get(path, parameters)
            if not isinstance(page, Mapping) or not isinstance(page.get(member), list):
                raise InvalidResponse(f"GET {path}: the answer has no list {member!r}")
            yield from page[member]
            if not page.get("next_page_token"):
                return
            parameters["page_token"] = page["next_page_token"]

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """GET with the body unread; a broken body raises ConnectionFailed too. 304 is yielded, not raised."""
        with self._reported(), self._http.stream("GET", path, headers=dict(headers)) as response:
            if not response.is_success and response.status_code != 304:
                response.read()
                raise self._refusal(response)
            yield response

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise ConnectionFailed(f"no answer from {self.url} in time ({type(error).__name__})") from error
        except httpx.RequestError as error:
            failure = ConnectionFailed(f"cannot reach {self.url}: {error or type(error).__name__}")
            failure.transient = not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
            raise failure from error

    def _refusal(self, response: httpx.Response, keyed: bool = False) -> Problem:
        problem = problem_of(response)
        # An earlier try with this key is still worked on, and its answer will be ours. Other conflicts stay.
        if keyed and problem.status == 409 and problem.retry_after_s is not None:
            problem.transient = True
        if problem.status == 401 and "Authorization" not in response.request.headers:
            problem.add_note(
                "no key was found: give one (api_key, --key or HEADSTART_API_KEY), or, on the machine of the "
                "service, start where its data is ./var or set HEADSTART_DATA to it"
            )
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
        fields = [e for e in body.get("errors") or () if isinstance(e, Mapping)]
        problem = problem_class(status)(
            status,
            str(body.get("title") or title),
            str(body.get("detail") or ""),
            tuple(FieldError(str(e.get("pointer", "")), str(e.get("detail", ""))) for e in fields),
            str(body.get("type") or "about:blank"),
            body,
        )
    problem.retry_after_s = retry_after_s(response.headers.get("retry-after"))
    return problem


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
