"""Acting over HTTP, by the short path: no session, no framework, no thread.

A request costs reading it, one forward pass in NumPy and writing the answer. What would hold the event loop for long,
large batches above all, is done beside it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, final
from urllib.parse import parse_qsl

import msgspec
import numpy as np
from starlette.types import Receive, Scope

from app.adaptations.act_events import record_act
from app.auth import KeyRing
from app.bodies import Held, media_type, read_struct, require_json
from app.database import Database
from app.decisions import (
    MAX_NUMBERS,
    MAX_OBSERVATIONS,
    Number,
    Seed,
    is_finite,
    not_finite,
    require_few,
    require_finite,
    require_sizes,
    wrong_size,
)
from app.documentation import describe_operation, describe_parameter
from app.errors import Invalid, NotFound, PayloadTooLarge
from app.fleet import Fleet, RefusedObservation
from app.inference import MOST_TOGETHER, PolicyBank
from app.policies.examples import POLICY
from app.short_path import INLINE_BYTES, Headers, Load, ShortPath, headers_of, is_long
from app.slots import Hot
from app.threads import Threads
from app.validation import pointer_to
from models.runtime import Array, Decision

_INLINE_FLEET_BYTES = 96 * 1024
_RECORDING = 4
_PATH = re.compile(r"/v1/(?:policies/([^/]+)|models/([^/]+)/versions/([0-9]{1,9})):act")
_FLEET = "/v1/policies:act"
_JSON = b"application/json"
_FLOATS = b"application/octet-stream"
_READ = frozenset((b"authorization", b"content-type", b"headstart-shape", b"headstart-timeout"))

_JSON_HEADER = (b"content-type", _JSON)


class ActRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Observations to act on."""

    observations: Annotated[list[list[Number]], msgspec.Meta(min_length=1)]
    deterministic: bool = True
    seed: Seed | None = None
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    policy_actions: bool = False
    record: bool = False


class ActResponse(msgspec.Struct, omit_defaults=True):
    """An action for each observation, with its log-probability and the value of the observation."""

    actions: list[int | list[float]]
    log_probs: list[float]
    values: list[float]
    policy: str
    revision: int | None = None
    policy_actions: list[list[float]] | None = None
    event_id: str | None = None


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    """A policy, by its id, or `model/3` for a bare version; and what it is to act on."""

    policy: str
    observation: list[Number]


class FleetActRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Observations of many policies to act on at once."""

    pairs: Annotated[list[Pair], msgspec.Meta(min_length=1)]
    deterministic: bool = True
    seed: Seed | None = None
    policy_actions: bool = False


class FleetActResponse(msgspec.Struct, omit_defaults=True):
    """An action for each pair, in their order, with its log-probability and the value of the observation."""

    actions: list[int | list[float]]
    log_probs: list[float]
    values: list[float]
    policy_actions: list[list[float] | None] | None = None


@final
class Acting(ShortPath):
    """Answers `POST ...:act`, an ASGI application of its own.

    Args:
        bank: The policies.
        keys: Who may call.
        database: Where acts are recorded.
        load: What there is for all that act.
    """

    def __init__(self, bank: PolicyBank, keys: KeyRing, database: Database, load: Load) -> None:
        super().__init__(keys, load)
        self.bank = bank
        self._database = database
        # The database has one writer, or few: more would only wait in threads.
        self._recording = Threads(_RECORDING)
        self._reader = msgspec.json.Decoder(ActRequest)
        self._fleet_reader = msgspec.json.Decoder(FleetActRequest)
        self._writer = msgspec.json.Encoder()

    @staticmethod
    def answers(scope: Scope) -> bool:
        """Whether a connection is for this."""
        return bool(scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(":act"))

    async def _serve(self, scope: Scope, receive: Receive, held: Held) -> tuple[bytes, Headers]:
        sent = headers_of(scope, _READ)
        await self._actor(sent)
        path: str = scope["path"]
        match = _PATH.fullmatch(path)
        if match is None and path != _FLEET:
            raise NotFound("there is no such path")
        body = await self._body(receive, held)
        if match is None:
            return await self._in_time(sent, self._act_fleet(sent, body))
        policy, model, version = match.groups()
        name = policy or f"{model}/{int(version)}"
        kind = sent.get(b"content-type", b"")
        if kind != _JSON:
            if media_type(kind) == _FLOATS:
                return await self._in_time(sent, self._act_binary(name, sent, scope["query_string"], body))
            require_json(kind)
        if len(body) > INLINE_BYTES:
            return await self._in_time(sent, self._act_large(name, body))
        request = self._read(body)
        entry = self.bank.hot(name, request.revision)
        if entry is None:
            entry = await self._in_time(sent, self.bank.load(name, request.revision))
        if is_long(entry.policy.architecture, len(request.observations)):
            return await self._in_time(sent, self._act_long(name, request))
        response = self._act(name, entry, request)
        if request.record:
            response.event_id = await self._in_time(sent, self._record(request, response))
        return self._writer.encode(response), [_JSON_HEADER]

    def _read(self, body: bytes) -> ActRequest:
        request = read_struct(self._reader, body)
        if request.record:
            _require_recordable(request)
            request.policy_actions = True
        return request

    def _act(self, name: str, entry: Hot, request: ActRequest) -> ActResponse:
        architecture, observations = entry.policy.architecture, request.observations
        if len(observations) > 1:
            return self._act_many(name, entry, request)
        require_sizes(architecture, observations)
        decision = entry.policy.act_one(observations[0], self._source(request))
        if not is_finite(decision):
            raise not_finite(0)
        drawn = [decision.drawn] if request.policy_actions and not architecture.discrete else None
        return ActResponse([decision.action], [decision.log_prob], [decision.value], name, entry.revision, drawn)

    def _act_many(self, name: str, entry: Hot, request: ActRequest) -> ActResponse:
        architecture = entry.policy.architecture
        require_few(len(request.observations), architecture)
        require_sizes(architecture, request.observations)
        decision = entry.policy.act(np.array(request.observations, np.float32), self._source(request))
        require_finite(decision)
        drawn = decision.drawn.tolist() if request.policy_actions and not architecture.discrete else None
        actions, log_probs, values = (each.tolist() for each in decision[:3])
        return ActResponse(actions, log_probs, values, name, entry.revision, drawn)

    async def _record(self, request: ActRequest, response: ActResponse) -> str:
        """Write down what is about to be answered; the event's id."""
        drawn = response.policy_actions

        def write() -> str:
            with self._database.transaction() as session:
                return record_act(
                    session,
                    response.policy,
                    request.observations[0],
                    response.actions[0],
                    None if drawn is None else drawn[0],
                    response.log_probs[0],
                    response.revision or 0,
                )

        return await self._recording.run(write)

    async def _act_large(self, name: str, body: bytes) -> tuple[bytes, Headers]:
        return await self._act_long(name, await self.load.threads.run(self._read, body))

    async def _act_long(self, name: str, request: ActRequest) -> tuple[bytes, Headers]:
        """Beside the event loop, with a policy of its own: it may be replaced meanwhile."""
        response = await self.load.threads.run_with(
            partial(self.bank.copy, name, request.revision), lambda entry: self._act_many(name, entry, request)
        )
        if request.record:
            response.event_id = await self._record(request, response)
        return await self.load.threads.run(self._writer.encode, response), [_JSON_HEADER]

    async def _act_binary(
        self, name: str, sent: Mapping[bytes, bytes], query: bytes, body: bytes
    ) -> tuple[bytes, Headers]:
        options = _options(query)
        observations = _floats(sent.get(b"headstart-shape", b""), body)
        entry = await self.bank.load(name, options.revision)
        architecture, generator = entry.policy.architecture, self._source(options)
        require_few(len(observations), architecture)
        if observations.shape[1] != architecture.observation_size:
            raise Invalid(
                pointer_to("observations", 0), wrong_size(architecture.observation_size, observations.shape[1])
            )

        def act(entry: Hot) -> tuple[Hot, Decision]:
            return entry, entry.policy.act(observations, generator)

        if len(body) > INLINE_BYTES or is_long(architecture, len(observations)):
            entry, decision = await self.load.threads.run_with(partial(self.bank.copy, name, options.revision), act)
        else:
            _, decision = act(entry)
        require_finite(decision)
        columns = [decision.action.reshape(len(observations), -1), decision.log_prob[:, None], decision.value[:, None]]
        if options.policy_actions and not architecture.discrete:
            columns.append(decision.drawn)
        table = np.concatenate(columns, 1, dtype="<f4", casting="same_kind")
        headers = [(b"content-type", _FLOATS), (b"headstart-shape", b"%d,%d" % table.shape)]
        return table.tobytes(), [*headers, (b"headstart-revision", b"%d" % entry.revision)]

    async def _act_fleet(self, sent: Mapping[bytes, bytes], body: bytes) -> tuple[bytes, Headers]:
        require_json(sent.get(b"content-type", b""))
        large = len(body) > _INLINE_FLEET_BYTES
        request = (
            await self.load.threads.run(read_struct, self._fleet_reader, body)
            if large
            else read_struct(self._fleet_reader, body)
        )
        pairs = request.pairs
        if len(pairs) > MAX_OBSERVATIONS:
            raise PayloadTooLarge(f"one request may hold {MAX_OBSERVATIONS} pairs, not more")
        response = FleetActResponse([], [], [], [] if request.policy_actions else None)
        generator = self._source(request)
        start = numbers = 0
        while start < len(pairs):
            fleet = await self._act_some(pairs, start, numbers, generator, response)
            start, numbers = start + fleet.size, numbers + fleet.numbers
            if start < len(pairs):
                await asyncio.sleep(0)
        content = await self.load.threads.run(self._writer.encode, response) if large else self._writer.encode(response)
        return content, [_JSON_HEADER]

    async def _act_some(
        self,
        pairs: Sequence[Pair],
        start: int,
        numbers: int,
        generator: np.random.Generator | None,
        response: FleetActResponse,
    ) -> Fleet:
        """Fill in the answers to pairs from a place on, beside so many numbers; those that have acted."""
        some = pairs[start : start + MOST_TOGETHER]
        fleet = await self.bank.fleet([pair.policy for pair in some])
        if numbers + fleet.numbers > MAX_NUMBERS:
            raise PayloadTooLarge(f"the actions of one request may be {MAX_NUMBERS} numbers together, not more")
        try:
            work = [pair.observation for pair in some[: fleet.size]], generator
            decisions = await self.load.threads.run(fleet.act, *work) if fleet.is_long else fleet.act(*work)
        except RefusedObservation as error:
            raise Invalid(pointer_to("pairs", start + error.place, "observation"), error.detail) from error
        response.actions += decisions.actions
        response.log_probs += decisions.log_probs
        response.values += decisions.values
        if response.policy_actions is not None:
            response.policy_actions += decisions.drawn
        return fleet


@dataclass(frozen=True)
class _Options:
    """What a binary request says in its query."""

    deterministic: bool = True
    seed: int | None = None
    revision: int = 0
    policy_actions: bool = False


def _options(query: bytes) -> _Options:
    values: dict[str, Any] = {}
    switches = {"true": True, "false": False}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in ("deterministic", "policy_actions"):
            if value not in switches:
                raise Invalid(f"/{name}", "must be true or false")
            values[name] = switches[value]
        elif name in ("seed", "revision"):
            if not (value.isascii() and value.isdigit() and len(value) <= 19 and int(value) < 2**63):
                raise Invalid(f"/{name}", "must be a whole number from 0 to 2^63 - 1")
            values[name] = int(value)
        else:
            raise Invalid(pointer_to(name), "unknown option; known: deterministic, seed, revision, policy_actions")
    return _Options(**values)


def _floats(shape: bytes, body: bytes) -> Array:
    """Observations [M, O] from little-endian float32."""
    found = re.fullmatch(rb"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", shape)
    if found is None:
        raise Invalid("", "say how many observations of how many numbers come: Headstart-Shape: 32,4")
    rows, columns = int(found[1]), int(found[2])
    if rows > MAX_OBSERVATIONS:
        raise PayloadTooLarge(f"one request may hold {MAX_OBSERVATIONS} observations, not more")
    if rows < 1 or columns < 1:
        raise Invalid("", f"Headstart-Shape is {rows},{columns}: neither may be 0")
    if len(body) != 4 * rows * columns:
        detail = f"Headstart-Shape is {rows},{columns}: {4 * rows * columns} bytes of float32, not {len(body)}"
        raise Invalid("", detail)
    observations = np.frombuffer(body, "<f4").reshape(rows, columns)
    bad = np.flatnonzero(~np.isfinite(observations).all(1))
    if len(bad):
        raise Invalid(pointer_to("observations", int(bad[0])), "must hold finite numbers")
    return observations.astype(np.float32, copy=False)


def _require_recordable(request: ActRequest) -> None:
    if len(request.observations) > 1:
        raise Invalid("/record", "goes with exactly one observation, whose reward is told later")


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Add acting to an OpenAPI document: the framework does not know what it does not serve."""
    _, components = msgspec.json.schema_components(
        [ActRequest, ActResponse, FleetActRequest, FleetActResponse], ref_template="#/components/schemas/{name}"
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    options = [
        describe_parameter(
            "query", "deterministic", {"type": "boolean", "default": True}, "Of a binary body; as in JSON."
        ),
        describe_parameter("query", "seed", {"type": "integer", "minimum": 0}, "Of a binary body; as in JSON."),
        describe_parameter("query", "revision", {"type": "integer", "minimum": 0}, "Of a binary body; as in JSON."),
        describe_parameter("query", "policy_actions", {"type": "boolean"}, "Of a binary body; as in JSON."),
        describe_parameter(
            "header", "Headstart-Shape", {"type": "string"}, "Of a binary body: its rows and columns, `32,4`."
        ),
    ]
    about = (
        "One action for each observation, up to 10,000: the most likely one, or a sampled one where `deterministic` is "
        "false; a `seed` makes sampling reproducible. `revision` asks for that revision of the policy or a later one, "
        "`policy_actions` for continuous actions as they were drawn, in policy units, before they are clipped and "
        "scaled. `record` keeps the act, of one observation by the policy of a remote adaptation, under the `event_id` "
        "by which its reward is told later. A body of type `application/octet-stream` is observations as little-endian "
        "float32, row by row, "
        "answered by rows of action, log-probability, value and, on request, policy action."
    )
    version = {"model": "A model's name.", "version": "Number of one of its versions."}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    for path, operation, summary, names in (
        ("/v1/policies/{policy}:act", "act", "Act with an adapted policy", {"policy": "A policy's id."}),
        ("/v1/models/{model}/versions/{version}:act", "act_bare", "Act with a bare version", version),
    ):
        described = describe_operation(operation, "policies", summary, about, "Act", _ACT_EXAMPLES, names)
        described["parameters"] += options
        described["requestBody"]["content"] |= binary
        described["responses"]["200"]["content"] |= binary
        schema["paths"][path] = {"post": described}
    about = (
        "An action for each of up to 10,000 pairs of a policy and an observation, in their order. Policies of one "
        "architecture act together. Where a policy is unknown or an observation is wrong, nothing is answered."
    )
    described = describe_operation(
        "act_fleet", "policies", "Act with many policies at once", about, "FleetAct", _FLEET_EXAMPLES, {}
    )
    schema["paths"][_FLEET] = {"post": described}
    return schema


_ID = POLICY["id"]
_ACT_EXAMPLES = (
    {"observations": [[0.01, 0.0, 0.02, 0.0]], "deterministic": True},
    {"actions": [1], "log_probs": [-0.21], "values": [88.1], "policy": _ID, "revision": 0},
)
_FLEET_EXAMPLES = (
    {"pairs": [{"policy": _ID, "observation": [0.01, 0.0, 0.02, 0.0]}], "deterministic": True},
    {"actions": [1], "log_probs": [-0.21], "values": [88.1]},
)
