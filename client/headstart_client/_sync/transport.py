# Generated from headstart_client/_async/transport.py by: python client/generate_sync.py
"""HTTP to one service: connections, JSON, retries, pages and streams."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from headstart_client.discovery import is_on_this_machine
from headstart_client.errors import HeadstartError, InvalidResponse
from headstart_client.transport import HASTE_S, PATIENT_ATTEMPTS, Key, Retry, json_of, no_answer, refusal, user_agent
from headstart_client.wire import encode

T = TypeVar("T")


class Transport:
    """One connection pool to one service; may be shared between threads."""

    def __init__(self, url: httpx.URL, key: str | None, timeout_s: float, retry: Retry) -> None:
        self.url = url
        self.key = Key(url, key)
        self.retry = retry
        self.timeout_s = timeout_s
        self._tls = httpx.create_ssl_context()
        self._http = self._pool(httpx.Limits(max_connections=100, max_keepalive_connections=20))
        # A stream has its connection for long, and must not wait for others to end.
        self._streams = self._pool(httpx.Limits())

    def _pool(self, limits: httpx.Limits) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"User-Agent": user_agent(), "Accept": "application/json"},
            auth=self.key,
            verify=self._tls,
            limits=limits,
            # A service on this machine is never asked through a proxy, which would see the admin key.
            trust_env=not is_on_this_machine(self.url),
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()
        self._streams.close()

    def patient(self) -> Transport:
        """The same connections, for work that a service may leave and come back to: retried for most of a minute."""
        patient = copy.copy(self)
        patient.retry = replace(self.retry, attempts=PATIENT_ATTEMPTS)
        return patient

    def hasty(self) -> Transport:
        """The same connections, for what is said once, in passing, to a service that may be away."""
        hasty = copy.copy(self)
        hasty.retry, hasty.timeout_s = replace(self.retry, attempts=1), min(self.timeout_s, HASTE_S)
        return hasty

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
            body: Sent as JSON unless ``None``; bytes are JSON already.
            headers: Beside the usual ones.
            repeatable: Whether sending it twice has the effect of sending it once; only then is it retried.
            answer_within_s: How long the service was asked to work before it answers; added to the time
                limit.

        Raises:
            ConnectionFailed: If no answer came.
            Problem: If the service refused.
        """
        content = body if body is None or isinstance(body, bytes) else encode(body)
        sent = dict(headers or {})
        if content is not None:
            sent["Content-Type"] = "application/json"
        parameters = {name: value for name, value in (query or {}).items() if value is not None}

        def send(attempt: int) -> httpx.Response:
            try:
                response = self._http.request(
                    method,
                    path,
                    params=parameters,
                    content=content,
                    headers=sent,
                    timeout=self._timeout(answer_within_s),
                )
            except httpx.RequestError as error:
                raise no_answer(error, self.url) from error
            # An earlier try deleted it, and its answer was lost.
            if response.is_success or (method == "DELETE" and attempt and response.status_code in (404, 410)):
                return response
            raise refusal(response, keyed="Idempotency-Key" in sent)

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
        try:
            with self._http.stream("GET", path, headers=dict(headers), timeout=self._timeout()) as response:
                if not response.is_success and response.status_code != 304:
                    response.read()
                    raise refusal(response)
                yield response
        except httpx.RequestError as error:
            raise no_answer(error, self.url) from error

    def upgrade(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """GET what is no HTTP any more after it: a response 101, with its ``network_stream``, for the caller to close.

        Raises:
            ConnectionFailed: If no answer came.
            Problem: If the service refused.
        """
        request = self._streams.build_request(
            "GET", path, headers={"Connection": "Upgrade", **headers}, timeout=self._timeout()
        )
        try:
            response = self._streams.send(request, stream=True)
            if response.status_code == 101:
                return response
            response.read()
        except httpx.RequestError as error:
            raise no_answer(error, self.url) from error
        raise refusal(response)

    def _timeout(self, answer_within_s: float = 0.0) -> httpx.Timeout:
        # The turn of a request among many is not the service's silence.
        return httpx.Timeout(self.timeout_s + answer_within_s, pool=None)
