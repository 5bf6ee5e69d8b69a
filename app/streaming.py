"""Acting over a WebSocket: a message for each observation, answered in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, final

import msgspec
import numpy as np
from starlette.types import Receive, Scope, Send

from app.arrivals import Arrivals
from app.auth import KeyRing, authenticate, bearer_token, digest_of
from app.bodies import read_struct, refusal
from app.decisions import (
    TOO_LARGE,
    Number,
    Seed,
    is_finite,
    require_few,
    require_finite,
    require_sizes,
    wrong_size,
)
from app.errors import BadRequest, Gone, HeadstartError, Invalid, NotFound, Unauthenticated, problem_of
from app.inference import PolicyBank
from app.short_path import INLINE_BYTES, Load, is_long
from app.slots import Hot
from models.runtime import Decision

MAX_MESSAGE_BYTES = 1024 * 1024
"""Longest message; a longer one closes the stream with 1009."""

MOST_OBSERVATIONS = 1000
"""Observations of one message: of a vector environment."""

FIRST_S = 10.0
"""Time that a client without a key in its headers has for a message with one."""

IDLE_S = 300.0
"""Time without a message after which a stream is closed."""

_PATH = re.compile(r"/v1/policies/([^/]+)/stream")
_UNAUTHENTICATED, _FORBIDDEN, _NOT_FOUND, _IDLE, _GONE, _GARBAGE, _FAILED, _BUSY = (
    4401,
    4403,
    4404,
    4408,
    4410,
    1007,
    1011,
    1013,
)
_Observation = list[Number]


class StreamMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What a client says: observations to act on, and how; or nothing, to learn which policy this is."""

    observation: _Observation | None = None
    observations: Annotated[list[_Observation], msgspec.Meta(min_length=1, max_length=MOST_OBSERVATIONS)] | None = None
    episode_start: bool = False
    deterministic: bool = True
    seed: Seed | None = None
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    policy_actions: bool = False
    key: str | None = None


class StreamAnswer(msgspec.Struct, omit_defaults=True):
    """An action for one observation."""

    action: Any
    log_prob: float
    value: float
    revision: int | None = None
    policy_action: list[float] | None = None


class StreamAnswers(msgspec.Struct, omit_defaults=True):
    """An action for each of several observations."""

    actions: list[Any]
    log_probs: list[float]
    values: list[float]
    revision: int | None = None
    policy_actions: list[list[float]] | None = None


class StreamPolicy(msgspec.Struct):
    """Which policy acts, and its newest revision that this process knows."""

    policy: str
    revision: int


class StreamError(msgspec.Struct):
    """A problem (RFC 9457) with one message; the stream goes on."""

    error: dict[str, Any]


_FROM_JSON, _TO_JSON = msgspec.json.Decoder(StreamMessage), msgspec.json.Encoder()
_FROM_MSGPACK, _TO_MSGPACK = msgspec.msgpack.Decoder(StreamMessage), msgspec.msgpack.Encoder()


class _Closed(Exception):
    """The stream is over: the code and the reason are for the client, None where it has gone."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@final
class Streaming:
    """Answers `/v1/policies/{policy}/stream`, an ASGI application of its own.

    Args:
        bank: The policies.
        keys: Who may call.
        load: What acts beside the event loop.
        max_streams: Open at a time; any more are closed with 1013.
    """

    def __init__(self, bank: PolicyBank, keys: KeyRing, load: Load, max_streams: int) -> None:
        self.bank = bank
        self.keys = keys
        self.load = load
        self.first, self.idle = Arrivals(FIRST_S), Arrivals(IDLE_S)
        self._max_streams = max_streams
        self._streams = 0

    @staticmethod
    def answers(scope: Scope) -> bool:
        """Whether a connection is for this."""
        return scope["type"] == "websocket" and _PATH.fullmatch(scope["path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        match = _PATH.fullmatch(scope["path"])
        assert match is not None
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        self._streams += 1
        try:
            if self._streams > self._max_streams:
                raise _Closed(_BUSY, "too many streams; try again later")
            await _Stream(self, match[1], scope, receive, send).run()
        except _Closed as closed:
            if closed.code is not None:
                # A reason may have 123 bytes.
                reason = closed.reason.encode()[:123].decode(errors="ignore")
                await send({"type": "websocket.close", "code": closed.code, "reason": reason})
        finally:
            self._streams -= 1


@final
class _Stream:
    """One connection; what belongs to an episode, its source of noise, belongs to the connection."""

    def __init__(self, streaming: Streaming, policy: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._bank, self._keys, self._load = streaming.bank, streaming.keys, streaming.load
        self._first, self._idle = streaming.first, streaming.idle
        self._policy = policy
        self._headers = scope["headers"]
        self._receive, self._send = receive, send
        self._answered: dict[str, Any] | None = None
        self._generator = np.random.default_rng()
        self._key = b""
        self._digest = ""

    async def run(self) -> None:
        authorization = next((value for name, value in self._headers if name == b"authorization"), None)
        if authorization is not None:
            await self._authenticate(authorization)
            await self._find()
        else:
            await self._answer(await self._next(self._first, _UNAUTHENTICATED, "send your key first"), first=True)
        while True:
            await self._answer(await self._next(self._idle, _IDLE, f"no message for {IDLE_S:g} s"))

    async def _next(self, arrivals: Arrivals, code: int, reason: str) -> str | bytes:
        """Send the last answer, and wait for the next message."""
        try:
            with arrivals.awaited():
                if self._answered is not None:
                    await self._send(self._answered)
                    self._answered = None
                event = await self._receive()
        except TimeoutError:
            # Who reads no answer would not read why, either.
            raise _Closed(code if self._answered is None else None, reason) from None
        if event["type"] != "websocket.receive":
            raise _Closed(None)
        text: str | None = event.get("text")
        return event["bytes"] if text is None else text

    async def _answer(self, content: str | bytes, *, first: bool = False) -> None:
        large = len(content) > INLINE_BYTES
        message = await self._load.threads.run(_read, content) if large else _read(content)
        if first:
            key = message.key if isinstance(message, StreamMessage) else None
            if key is None:
                raise _Closed(_UNAUTHENTICATED, "send your key: in the header Authorization, or as `key` at first")
            await self._authenticate(b"Bearer " + key.encode())
            await self._find()
        answer = await self._act(message)
        if isinstance(content, str):
            self._answered = {"type": "websocket.send", "text": _TO_JSON.encode(answer).decode()}
        else:
            self._answered = {"type": "websocket.send", "bytes": _TO_MSGPACK.encode(answer)}

    async def _act(self, message: StreamMessage | StreamError) -> msgspec.Struct:
        if isinstance(message, StreamError):
            return message
        if self._keys.lookup_digest(self._digest) is None:
            # Forgotten, which may be for a revocation or for nothing.
            await self._authenticate(self._key)
        entry = self._bank.hot(self._policy, message.revision) or await self._find(message.revision)
        if isinstance(entry, StreamError):
            return entry
        if message.episode_start and message.seed is not None:
            self._generator = np.random.default_rng(message.seed)
        generator = None if message.deterministic else self._generator
        try:
            return await self._acted(entry, message, generator)
        except HeadstartError as error:
            return StreamError(problem_of(error).body)

    async def _acted(self, entry: Hot, message: StreamMessage, generator: np.random.Generator | None) -> msgspec.Struct:
        if message.seed is not None and not message.episode_start:
            raise Invalid("/seed", "goes with episode_start: noise is drawn anew from it for the whole episode")
        one, many, drawn = message.observation, message.observations, message.policy_actions
        act: Callable[[Hot], msgspec.Struct]
        if one is not None:
            if many is not None:
                raise Invalid("/observations", "goes without observation")
            act, count = lambda entry: _one(entry, one, drawn, generator), 1
        elif many is not None:
            act, count = lambda entry: _many(entry, many, drawn, generator), len(many)
        else:
            return StreamPolicy(self._policy, entry.revision)
        if not is_long(entry.policy.architecture, count):
            return act(entry)
        # With a policy of its own: it may be replaced meanwhile.
        return await self._load.threads.run_with(partial(self._bank.copy, self._policy, message.revision), act)

    async def _authenticate(self, key: bytes) -> None:
        try:
            principal = await authenticate(self._keys, key)
        except Unauthenticated as error:
            raise _Closed(_UNAUTHENTICATED, error.detail) from error
        if not principal.may("policies:act"):
            raise _Closed(_FORBIDDEN, "the key needs the scope policies:act")
        self._key, self._digest = key, digest_of(bearer_token(key) or "")

    async def _find(self, revision: int = 0) -> Hot | StreamError:
        try:
            return await self._bank.load(self._policy, revision)
        except Gone as error:
            raise _Closed(_GONE, error.detail) from error
        except NotFound as error:
            if revision:
                return StreamError(problem_of(error).body)
            raise _Closed(_NOT_FOUND, error.detail) from error
        except Exception as error:
            raise _Closed(_FAILED, problem_of(error).body["detail"]) from error


def _read(content: str | bytes) -> StreamMessage | StreamError:
    return _read_json(content) if isinstance(content, str) else _read_msgpack(content)


def _read_json(text: str) -> StreamMessage | StreamError:
    try:
        return read_struct(_FROM_JSON, text)
    except BadRequest as error:
        raise _Closed(_GARBAGE, error.detail) from error
    except Invalid as error:
        return StreamError(problem_of(error).body)


def _read_msgpack(content: bytes) -> StreamMessage | StreamError:
    try:
        return _FROM_MSGPACK.decode(content)
    except msgspec.ValidationError as error:
        return StreamError(problem_of(refusal(str(error), StreamMessage)).body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Closed(_GARBAGE, f"the message is not msgpack: {error}") from error


def _one(
    entry: Hot, observation: Sequence[float], policy_actions: bool, generator: np.random.Generator | None
) -> StreamAnswer:
    policy, size = entry.policy, entry.policy.architecture.observation_size
    if len(observation) != size:
        raise Invalid("/observation", wrong_size(size, len(observation)))
    if is_long(policy.architecture, 1):
        # In a thread, which must not share the buffers of the quick way.
        batch = policy.act(np.array([observation], np.float32), generator)
        decision = Decision(*(None if each is None else each[0].tolist() for each in batch))
    else:
        decision = policy.act_one(observation, generator)
    if not is_finite(decision):
        raise Invalid("/observation", TOO_LARGE)
    drawn = decision.drawn if policy_actions else None
    return StreamAnswer(decision.action, decision.log_prob, decision.value, entry.revision, drawn)


def _many(
    entry: Hot, observations: Sequence[Sequence[float]], policy_actions: bool, generator: np.random.Generator | None
) -> StreamAnswers:
    require_few(len(observations), entry.policy.architecture)
    require_sizes(entry.policy.architecture, observations)
    decision = entry.policy.act(np.array(observations, np.float32), generator)
    require_finite(decision)
    drawn = decision.drawn.tolist() if policy_actions and decision.drawn is not None else None
    actions, log_probs, values = (each.tolist() for each in decision[:3])
    return StreamAnswers(actions, log_probs, values, entry.revision, drawn)
