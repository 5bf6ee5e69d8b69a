"""Inference by the Open Inference Protocol, by the short path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from app.auth import KeyRing
from app.bodies import Held, media_type
from app.decisions import TOO_LARGE, first_not_finite, require_few
from app.documentation import describe_operation, describe_parameter
from app.errors import Invalid, UnsupportedMediaType
from app.protocol.catalogue import Catalogue, Served
from app.protocol.examples import REQUEST, RESPONSE
from app.protocol.statistics import Statistics, Stopwatch
from app.protocol.tensors import (
    InferRequest,
    InferResponse,
    Question,
    read_question,
    require_outputs,
    write_answer,
)
from app.short_path import INLINE_BYTES, Headers, Load, ShortPath, headers_of, is_long

_PATH = re.compile(r"/v2/models/([^/\0]+)(?:/versions/([^/\0]+))?/infer")
_KINDS = (b"application/json", b"application/octet-stream")
_READ = frozenset(
    (
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"inference-header-content-length",
        b"headstart-timeout",
    )
)


@final
class Inferring(ShortPath):
    """Answers `/v2/models/{model}[/versions/{version}]/infer`, an ASGI application of its own.

    Args:
        catalogue: What can be asked.
        statistics: Where it is counted.
        keys: Who may call.
        load: What there is for all that act.
    """

    def __init__(self, catalogue: Catalogue, statistics: Statistics, keys: KeyRing, load: Load) -> None:
        super().__init__(keys, load)
        self._catalogue = catalogue
        self._statistics = statistics

    @staticmethod
    def answers(scope: Scope) -> bool:
        """Whether a connection is for this."""
        return scope["type"] == "http" and _PATH.fullmatch(scope["path"]) is not None

    async def _serve(self, scope: Scope, receive: Receive, held: Held) -> tuple[bytes, Headers]:
        sent = headers_of(scope, _READ)
        await self._actor(sent)
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        _require_readable(sent)
        match = _PATH.fullmatch(scope["path"])
        assert match is not None
        body = await self._body(receive, held)
        return await self._in_time(sent, self._infer(match[1], match[2] or "", sent, body))

    async def _infer(self, name: str, version: str, sent: Mapping[bytes, bytes], body: bytes) -> tuple[bytes, Headers]:
        watch = Stopwatch()
        header_length = sent.get(b"inference-header-content-length")
        large = len(body) > INLINE_BYTES
        question = (
            await self.load.threads.run(read_question, body, header_length)
            if large
            else read_question(body, header_length)
        )
        watch.lap("compute_input")
        asked = name, version, question.parameters.revision
        served = await self._catalogue.find(*asked)
        name, version, entry = served
        try:
            architecture, count = entry.policy.architecture, len(question.observations)
            watch.lap("queue")
            if large or is_long(architecture, count):

                async def copy() -> Served:
                    # What stands when it is its turn, as a policy of its own: it may be replaced meanwhile.
                    found = await self._catalogue.find(*asked)
                    return found._replace(entry=found.entry.copy())

                answer = await self.load.threads.run_with(copy, lambda served: self._act(served, question, watch))
            else:
                answer = self._act(served, question, watch)
        except BaseException:
            self._statistics.failed(name, version, watch)
            raise
        self._statistics.succeeded(name, version, count, watch)
        return answer

    def _act(self, served: Served, question: Question, watch: Stopwatch) -> tuple[bytes, Headers]:
        watch.lap("queue")
        policy, observations = served.entry.policy, question.observations
        architecture = policy.architecture
        if observations.shape[1] != architecture.observation_size:
            shape = [-1, architecture.observation_size]
            raise Invalid("/inputs/0/shape", f"must be {shape}, not {list(observations.shape)}")
        require_few(len(observations), architecture)
        require_outputs(architecture, question.outputs)
        decision = policy.act(observations, self._source(question.parameters))
        bad = first_not_finite(decision)
        if bad is not None:
            raise Invalid("/inputs/0", f"observation {bad} {TOO_LARGE}")
        watch.lap("compute_infer")
        answer = write_answer(question, decision, architecture, served.name, served.version)
        watch.lap("compute_output")
        return answer


def _require_readable(sent: Mapping[bytes, bytes]) -> None:
    # NVIDIA's client sends JSON and binary data alike without saying what it is.
    if media_type(sent.get(b"content-type", _KINDS[0])) not in _KINDS:
        raise UnsupportedMediaType(f"send {' or '.join(kind.decode() for kind in _KINDS)}")
    if sent.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedMediaType("send the body as it is, without Content-Encoding")


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Add inference to an OpenAPI document: the framework does not know what it does not serve."""
    _, components = msgspec.json.schema_components(
        [InferRequest, InferResponse], ref_template="#/components/schemas/{name}"
    )
    schema["components"]["schemas"] |= components
    about = (
        "Up to 10,000 observations in the input `observation`, of shape [N, O], are answered by `action`, `log_prob`, "
        "`value` and, of continuous actions, `policy_action`, each of N rows. The parameters `deterministic`, `seed` "
        "and `revision` are as of `:act`. With the header `Inference-Header-Content-Length` the body is so many bytes "
        "of JSON and then binary data, and so is the answer where binary data are asked for."
    )
    model = {"model": "A policy's id; or a model's name, or `model@alias`."}
    version = model | {"version": "A policy's newest revision; or the number of one of a model's versions."}
    length = describe_parameter("header", "Inference-Header-Content-Length", {"type": "integer", "minimum": 0}, _LENGTH)
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    for path, name, summary, names in (
        ("/v2/models/{model}/infer", "infer", "Act, by the Open Inference Protocol", model),
        ("/v2/models/{model}/versions/{version}/infer", "infer_version", "Act with a version, by the same", version),
    ):
        described = describe_operation(name, "inference-protocol", summary, about, "Infer", (REQUEST, RESPONSE), names)
        described["parameters"].append(length)
        described["requestBody"]["content"] |= binary
        described["responses"]["200"]["content"] |= binary
        schema["paths"][path] = {"post": described}
    return schema


_LENGTH = "Bytes of the body that are JSON; binary data follow. Without it all of it is JSON."
