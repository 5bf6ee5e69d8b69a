"""Everything that a call can raise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart_client.adaptations import Adaptation
    from headstart_client.evaluations import Evaluation
    from headstart_client.runs import RunRecord

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


class HeadstartError(Exception):
    """Any failure of this package.

    Attributes:
        transient: Whether the same call may well succeed a moment later.
        retry_after_s: How long the service asked to be left alone, in seconds, if it did.
    """

    transient: bool = False
    retry_after_s: float | None = None


class ConnectionFailed(HeadstartError):
    """No answer: nothing listens there, the connection broke, or no byte came within the time limit."""

    transient = True


class StreamClosed(ConnectionFailed):
    """A stream of actions is over: the service went away, nothing was asked for long, or it was closed here.

    Attributes:
        code: Close code of the WebSocket; 1006 where the connection broke, 1000 where it was closed here.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.transient = code != 1000


class InvalidResponse(HeadstartError):
    """An answer that no Headstart service sends: not JSON, or a member missing or of another type."""


class DigestMismatch(HeadstartError):
    """A downloaded file whose sha256 is not the promised one. It was removed."""


class Timeout(HeadstartError, TimeoutError):
    """A wait ended before the work did. The work goes on."""


class RunFailed(HeadstartError):
    """A run that was waited for has failed or was cancelled.

    Attributes:
        run: The run as it ended; ``run.error`` says why.
    """

    def __init__(self, run: RunRecord) -> None:
        reason = f": {run.error.detail}" if run.error else ""
        super().__init__(f"run {run.id} {'was cancelled' if run.state == 'cancelled' else 'failed'}{reason}")
        self.run = run


class AdaptationFailed(HeadstartError):
    """An adaptation that was waited for has failed.

    Attributes:
        adaptation: The adaptation as it ended; ``adaptation.error`` says why.
    """

    def __init__(self, adaptation: Adaptation) -> None:
        reason = f": {adaptation.error.detail}" if adaptation.error else ""
        super().__init__(f"adaptation {adaptation.id} {adaptation.state}{reason}")
        self.adaptation = adaptation


class EvaluationFailed(HeadstartError):
    """An evaluation that was waited for has failed or was cancelled.

    Attributes:
        evaluation: The evaluation as it ended; ``evaluation.error`` says why.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        reason = f": {evaluation.error.detail}" if evaluation.error else ""
        super().__init__(f"evaluation {evaluation.id} {evaluation.state}{reason}")
        self.evaluation = evaluation


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one member of a request.

    Attributes:
        pointer: JSON pointer into the request body: ``/stop/seconds``.
        detail: What is wrong with the value there.
    """

    pointer: str
    detail: str


class Problem(HeadstartError):
    """The service refused a request. ``str()`` is the detail, then a line for each bad member.

    Attributes:
        status: HTTP status.
        title: The kind of problem, the same for every occurrence.
        detail: What happened this time.
        errors: The members at fault, if the request was at fault.
        type: URI of the kind of problem: ``/problems/not-found``.
        raw: The whole answer, for members that this version of the client does not know.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        errors: tuple[FieldError, ...] = (),
        type: str = "about:blank",
        raw: Mapping[str, object] | None = None,
    ) -> None:
        lines = [f"{e.pointer}: {e.detail}" if e.pointer else e.detail for e in errors]
        # A detail that already quotes a member's error does not need it twice.
        super().__init__("\n  ".join([detail or title, *(line for line in lines if line not in detail)]))
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        self.type = type
        self.raw = raw or {"type": type, "title": title, "status": status, "detail": detail}
        self.transient = status in RETRIED_STATUSES


class BadRequest(Problem):
    """400: not JSON, or a page token that the service did not issue for this list."""


class Unauthorised(Problem):
    """401: no key, or one that is unknown, revoked or expired."""


class Forbidden(Problem):
    """403: the key lacks the scope for this call."""


class NotFound(Problem):
    """404: nothing of that name stands."""


class Conflict(Problem):
    """409: the name stands with another definition, or the resource is in use."""


class Gone(NotFound):
    """410: it stood, and has expired or was deleted; the detail says since when."""


class PreconditionFailed(Problem):
    """412: the resource has changed since its ETag was read."""


class TooLarge(Problem):
    """413: the body is larger than the service takes."""


class InvalidRequest(Problem):
    """422: the request is understood and wrong; ``errors`` points at each bad member."""


class TooManyRequests(Problem):
    """429: slow down; retried automatically where that is safe."""


class ServiceFailed(Problem):
    """5xx: the fault is the service's."""


PROBLEMS: dict[int, type[Problem]] = {
    400: BadRequest,
    401: Unauthorised,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    412: PreconditionFailed,
    413: TooLarge,
    422: InvalidRequest,
    429: TooManyRequests,
}


def problem_class(status: int) -> type[Problem]:
    """The exception for an HTTP status."""
    return PROBLEMS.get(status, ServiceFailed if status >= 500 else Problem)
