"""Acting: the bank of policies that are hot, and the short path of `:act` through a process.

A request costs reading JSON, one forward pass in NumPy and writing JSON; no session, no framework, no thread. Only a
policy that is not hot is fetched from database and store, once however many ask for it, beside the event loop.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.auth import Principal
from app.bodies import read_struct
from app.database import Database
from app.errors import BadRequest, Corrupt, Forbidden, Invalid, NotFound, UnsupportedMediaType
from app.policies import service as policies
from app.registry import service as registry
from app.store import ArtefactStore
from app.tables import Policy
from app.validation import pointer_to
from models.checkpoint import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    InvalidArtefact,
    check_params,
    load_params,
    numpy_params,
    policy_from_json,
    unpack,
)
from models.runtime import NumpyPolicy

CAPACITY_BYTES = 256 * 1024 * 1024
"""Parameters that one process keeps hot; the least recently used go first."""

MAX_OBSERVATIONS = 10_000
"""Observations that one request may hold."""

_INLINE_BYTES = 32 * 1024
_PATH = re.compile(r"/v1/(?:policies/(?P<policy>[^/]+)|models/(?P<model>[^/]+)/versions/(?P<version>[0-9]{1,9})):act")


_LARGEST = float(np.finfo(np.float32).max)
_Number = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]


class ActRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Observations to act on."""

    observations: Annotated[list[list[_Number]], msgspec.Meta(min_length=1, max_length=MAX_OBSERVATIONS)]
    deterministic: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class ActResponse(msgspec.Struct):
    """An action for each observation, with its log-probability and the value of the observation."""

    actions: list[Any]
    log_probs: list[float]
    values: list[float]
    policy: str


@dataclass(slots=True)
class _Hot:
    policy: NumpyPolicy
    expires_s: float
    last_used: float = field(default_factory=time.monotonic)


class PolicyBank:
    """The policies that this process answers for from memory.

    A name is a policy's id, or ``model/number`` for the bare initialisation of a version.
    """

    def __init__(self, database: Database, store: ArtefactStore, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._database = database
        self._store = store
        self._capacity_bytes = capacity_bytes
        self._hot: dict[str, _Hot] = {}
        self._loading: dict[str, asyncio.Task[_Hot]] = {}
        self._generator = np.random.default_rng()

    def hot(self, name: str) -> NumpyPolicy | None:
        """The policy, if it is in memory and has not expired."""
        entry = self._hot.get(name)
        if entry is None or entry.expires_s <= time.time():
            return None
        entry.last_used = time.monotonic()
        return entry.policy

    async def load(self, name: str) -> NumpyPolicy:
        """The policy, fetched if need be; many callers at once share one fetch.

        Raises:
            NotFound: If it does not stand.
            Corrupt: If its bytes are not those that were stored.
        """
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(self._fetch, name))
            self._loading[name] = task
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        # A caller that goes away must not take the fetch from the others.
        entry = await asyncio.shield(task)
        self._hot[name] = entry
        self._evict()
        return entry.policy

    def refresh(self) -> None:
        """Forget what was deleted elsewhere; called every second."""
        names = [name for name in list(self._hot) if "/" not in name]
        with self._database.snapshot() as session:
            standing = set(session.scalars(select(Policy.id).where(Policy.id.in_(names), Policy.deleted_at.is_(None))))
        for name in names:
            if name not in standing:
                self._hot.pop(name, None)

    def act(self, name: str, policy: NumpyPolicy, request: ActRequest) -> ActResponse:
        """One action for each observation; the reader of the request has seen that they are finite.

        Raises:
            Invalid: If an observation is not of the size that the policy was trained on.
        """
        for index, row in enumerate(request.observations):
            if len(row) != policy.observation_size:
                detail = f"must hold {policy.observation_size} numbers, not {len(row)}"
                raise Invalid(pointer_to("observations", index), detail)
        observations = np.array(request.observations, np.float32)
        generator = None
        if not request.deterministic:
            generator = self._generator if request.seed is None else np.random.default_rng(request.seed)
        actions, log_probs, values = policy.act(observations, generator)
        return ActResponse(actions.tolist(), log_probs.tolist(), values.tolist(), name)

    def _evict(self) -> None:
        size = sum(entry.policy.size_bytes for entry in self._hot.values())
        for name, entry in sorted(self._hot.items(), key=lambda item: item[1].last_used)[:-1]:
            if size <= self._capacity_bytes:
                return
            size -= entry.policy.size_bytes
            self._hot.pop(name, None)

    def _fetch(self, name: str) -> _Hot:
        try:
            return self._fetch_version(name) if "/" in name else self._fetch_policy(name)
        except InvalidArtefact as error:
            raise Corrupt(f"{name}: {error}") from error

    def _fetch_policy(self, name: str) -> _Hot:
        with self._database.snapshot() as session:
            spec, sha256, expires_at = policies.load(session, name)
        policy = policy_from_json(spec)
        params = check_params(policy.shapes(), load_params(self._store.read(sha256)))
        expires_s = float("inf") if expires_at is None else expires_at.timestamp()
        return _Hot(NumpyPolicy(policy, numpy_params(params)), expires_s)

    def _fetch_version(self, name: str) -> _Hot:
        with self._database.snapshot() as session:
            model, _, number = name.partition("/")
            files = [registry.get_file(session, model, number, f) for f in (MANIFEST_FILE, PARAMETERS_FILE)]
        artefact = unpack(*(self._store.read(file.sha256) for file in files))
        return _Hot(NumpyPolicy(artefact.policy, numpy_params(artefact.params)), float("inf"))


def is_act(scope: Scope) -> bool:
    """Whether a connection is for :class:`Act`."""
    return bool(scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(":act"))


class Act:
    """Answers `POST ...:act`, an ASGI application of its own; the caller is known by then."""

    def __init__(self, bank: PolicyBank) -> None:
        self.bank = bank
        self._decoder = msgspec.json.Decoder(ActRequest)
        self._encoder = msgspec.json.Encoder()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        match = _PATH.fullmatch(scope["path"])
        if match is None:
            raise NotFound("there is no such path")
        principal: Principal = scope["headstart.principal"]
        if not principal.may("policies:act"):
            raise Forbidden("the key needs the scope policies:act")
        name = match["policy"] or f"{match['model']}/{int(match['version'])}"
        body = await _body(scope["headers"], receive)
        policy = self.bank.hot(name) or await self.bank.load(name)
        if len(body) <= _INLINE_BYTES:
            content = self._answer(name, policy, body)
        else:  # beside the event loop, so that it delays nobody
            content = await run_in_threadpool(self._answer, name, policy, body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, name: str, policy: NumpyPolicy, body: bytes) -> bytes:
        return self._encoder.encode(self.bank.act(name, policy, read_struct(self._decoder, body)))


async def _body(headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    if not kind.startswith(b"application/json"):
        raise UnsupportedMediaType("send JSON, with Content-Type: application/json")
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client left before the body was complete")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Add `:act` to an OpenAPI document: the framework does not know what it does not serve."""
    _, components = msgspec.json.schema_components(
        [ActRequest, ActResponse], ref_template="#/components/schemas/{name}"
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    example = {"observations": [[0.01, 0.0, 0.02, 0.0]], "deterministic": True}
    answer = {"actions": [1], "log_probs": [-0.21], "values": [88.1], "policy": "0198c3a0-7b1e-7000-8000-000000000000"}
    subjects = {
        "/v1/policies/{policy}:act": ("act", "Act with an adapted policy", ["policy"]),
        "/v1/models/{model}/versions/{version}:act": ("act_bare", "Act with a bare version", ["model", "version"]),
    }
    for path, (operation, summary, parameters) in subjects.items():
        content = {"schema": {"$ref": "#/components/schemas/ActRequest"}, "example": example}
        response = {"schema": {"$ref": "#/components/schemas/ActResponse"}, "example": answer}
        schema["paths"][path] = {
            "post": {
                "operationId": operation,
                "tags": ["policies"],
                "summary": summary,
                "description": "One action for each observation: the most likely one, or a sampled one where "
                "`deterministic` is false; a `seed` makes sampling reproducible.",
                "security": [{"API key": []}],
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
                ],
                "requestBody": {"required": True, "content": {"application/json": content}},
                "responses": {"200": {"description": "The actions", "content": {"application/json": response}}},
            }
        }
    return schema
