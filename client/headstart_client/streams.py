"""Acting through a stream: what is said on it, and what its end means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from headstart_client.errors import HeadstartError, InvalidResponse, StreamClosed, problem_class
from headstart_client.policies import Action, read_action
from headstart_client.transport import problem_from
from headstart_client.wire import encode_numbers

HTTP_STATUSES = {1007: 400, 1009: 413, 1011: 500, 1012: 503, 1013: 503, 4401: 401, 4403: 403, 4404: 404, 4410: 410}
"""Close codes that refuse what a request over HTTP would be refused with, too."""

MEANINGS = {
    1000: "the stream is closed",
    1001: "the service is stopping",
    1006: "the connection broke",
    1007: "a message was not JSON",
    1009: "a message was larger than the service takes",
    1011: "the service failed",
    1012: "the service is being started anew: come again",
    1013: "the service has too much to do: try again later",
    4401: "no valid key",
    4403: "the key lacks the scope for acting",
    4404: "there is no such policy",
    4408: "the stream was closed because nothing was asked for long",
    4410: "the policy has expired or was deleted",
}


def message(
    observations: ArrayLike,
    *,
    deterministic: bool,
    episode_start: bool = False,
    seed: int | None = None,
    revision: int | None = None,
    policy_actions: bool = False,
) -> bytes:
    """A message that asks for actions; members that stand for themselves are left out.

    Raises:
        ValueError: If an observation holds a NaN or an infinity.
    """
    batch = np.asarray(observations, dtype=np.float64)
    body: dict[str, object] = {"observation" if batch.ndim <= 1 else "observations": batch.tolist()}
    if not deterministic:
        body["deterministic"] = False
    if episode_start:
        body["episode_start"] = True
    if seed is not None:
        body["seed"] = seed
    if revision is not None:
        body["revision"] = revision
    if policy_actions:
        body["policy_actions"] = True
    return encode_numbers(body)


def read_message(data: str | bytes) -> Mapping[str, Any]:
    """What the service said.

    Raises:
        Problem: If it refused what was asked; the stream goes on.
        InvalidResponse: If it is not a JSON object.
    """
    try:
        answer = msgspec.json.decode(data)
    except ValueError as error:
        raise InvalidResponse(f"the stream answered without JSON: {data[:80]!r}") from error
    if not isinstance(answer, Mapping):
        raise InvalidResponse(f"the stream answered without a JSON object: {data[:80]!r}")
    refused = answer.get("error")
    if isinstance(refused, Mapping):
        status = refused.get("status")
        raise problem_from(refused, status if isinstance(status, int) else 422, "refused")
    return answer


def stream_action(answer: Mapping[str, Any], policy: str) -> Action:
    """The action in an answer, which to one observation has its members in the singular."""
    if "action" in answer:
        members = ("action", "log_prob", "value", "policy_action")
        plural = {f"{name}s": [answer[name]] for name in members if answer.get(name) is not None}
        return read_action({"policy": policy, "revision": answer.get("revision"), **plural}, answer)
    return read_action({"policy": policy, **answer}, answer)


def stream_end(code: int, reason: str) -> HeadstartError:
    """The exception for a close code: that of the same refusal over HTTP where there is one."""
    text = reason or MEANINGS.get(code, f"the stream was closed with code {code}")
    status = HTTP_STATUSES.get(code)
    if status is None:
        return StreamClosed(text, code)
    return problem_class(status)(status, MEANINGS[code], text)
