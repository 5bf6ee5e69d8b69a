"""Client of the Headstart meta-reinforcement-learning service."""

from headstart_client._async.remote import AsyncRemotePolicy
from headstart_client._async.runs import AsyncRun
from headstart_client._async.streams import AsyncPolicyStream
from headstart_client._sync.remote import RemotePolicy
from headstart_client._sync.runs import Run
from headstart_client._sync.streams import PolicyStream
from headstart_client.access import ApiKey
from headstart_client.adaptations import (
    Adaptation,
    AdaptationProgress,
    Brought,
    BroughtEpisode,
    CurvePoint,
    Performance,
    Uploaded,
)
from headstart_client.applied import Applied, Difference, Finding
from headstart_client.client import AsyncClient, Client
from headstart_client.errors import (
    AdaptationFailed,
    BadRequest,
    Conflict,
    ConnectionFailed,
    DigestMismatch,
    EvaluationFailed,
    FieldError,
    Forbidden,
    Gone,
    HeadstartError,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    PreconditionFailed,
    Problem,
    RunFailed,
    ServiceFailed,
    StreamClosed,
    Timeout,
    TooLarge,
    TooManyRequests,
    Unauthorised,
)
from headstart_client.evaluations import Evaluation, EvaluationProgress, Leak
from headstart_client.events import Event
from headstart_client.health import Health
from headstart_client.local import LocalActions, LocalPolicy
from headstart_client.policies import Action, Outcome, Policy
from headstart_client.policy_file import InvalidPolicyFile
from headstart_client.registry import Alias, AliasEvent, Lineage, Model, Version
from headstart_client.remote import RemoteProgress
from headstart_client.rollouts import Episode, Rollout
from headstart_client.runs import Best, EvaluationTasks, HeldOutReturns, Metric, Progress
from headstart_client.tasks import Environment, Parameter, Task, TaskFamily
from headstart_client.transport import Retry
from headstart_client.wire import Failure, File

__all__ = [
    "Action",
    "Adaptation",
    "AdaptationFailed",
    "AdaptationProgress",
    "Alias",
    "AliasEvent",
    "ApiKey",
    "Applied",
    "AsyncClient",
    "AsyncPolicyStream",
    "AsyncRemotePolicy",
    "AsyncRun",
    "BadRequest",
    "Best",
    "Brought",
    "BroughtEpisode",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "CurvePoint",
    "Difference",
    "DigestMismatch",
    "Environment",
    "Episode",
    "Evaluation",
    "EvaluationFailed",
    "EvaluationProgress",
    "EvaluationTasks",
    "Event",
    "Failure",
    "FieldError",
    "File",
    "Finding",
    "Forbidden",
    "Gone",
    "HeadstartError",
    "Health",
    "HeldOutReturns",
    "InvalidPolicyFile",
    "InvalidRequest",
    "InvalidResponse",
    "Leak",
    "Lineage",
    "LocalActions",
    "LocalPolicy",
    "Metric",
    "Model",
    "NotFound",
    "Outcome",
    "Parameter",
    "Performance",
    "Policy",
    "PolicyStream",
    "PreconditionFailed",
    "Problem",
    "Progress",
    "RemotePolicy",
    "RemoteProgress",
    "Retry",
    "Rollout",
    "Run",
    "RunFailed",
    "ServiceFailed",
    "StreamClosed",
    "Task",
    "TaskFamily",
    "Timeout",
    "TooLarge",
    "TooManyRequests",
    "Unauthorised",
    "Uploaded",
    "Version",
]
