"""Finding, publishing and deleting policies. One that has expired is as good as deleted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from app.auth import Principal, audit
from app.database import now
from app.errors import Corrupt, Gone, Invalid, NotFound
from app.leases import request_cancellation
from app.pagination import Page, paginate
from app.registry.service import VersionEntry, find_version, get_file, get_version, publish_version
from app.store import ArtefactStore
from app.tables import Adaptation, Policy, PolicyRevision
from app.work import FINAL
from models.checkpoint import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    InvalidArtefact,
    check_params,
    learner_from_json,
    load_params,
    pack,
    policy_from_json,
)
from models.learners import MAML, Learner, MAMLConfig
from models.policy import Policy as PolicyArchitecture
from models.types import Params

FILE_NAME = "policy.safetensors"
"""What the artefact of a policy's parameters is called."""


@dataclass(frozen=True)
class PolicyEntry:
    """A policy and the task that it was adapted to: an id, or the definition of one that was never registered."""

    policy: Policy
    task: str | dict[str, Any] | None


def get_policy(session: Session, policy_id: str) -> PolicyEntry:
    """The policy of that id.

    Raises:
        NotFound: If there is none; Gone, with when, if it has expired or was deleted.
    """
    return _entries(session, [_find(session, policy_id)])[0]


def list_policies(session: Session, page: Page) -> tuple[list[PolicyEntry], str | None]:
    """A page of the policies that stand, newest first."""
    statement = select(Policy).where(_stands())
    rows, token = paginate(session, statement, Policy.id, page, {"list": "policies"}, newest_first=True)
    return _entries(session, rows), token


def find_policies(session: Session, ids: Sequence[str]) -> dict[str, Policy | NotFound]:
    """The policies of these ids, or why there is none."""
    rows = {row.id: row for row in session.scalars(select(Policy).where(Policy.id.in_(ids)))}
    return {id_: _standing(id_, rows.get(id_)) for id_ in ids}


def standing_digests(session: Session, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Of those of these policies that stand, the digest of the parameters and the revision.

    Both, as a step that learned nothing makes a revision of the same parameters.
    """
    statement = select(Policy.id, Policy.sha256, Policy.revision).where(Policy.id.in_(ids), Policy.deleted_at.is_(None))
    return {id_: (sha256, revision) for id_, sha256, revision in session.execute(statement)}


def read_policy(
    store: ArtefactStore, policy_id: str, spec: dict[str, Any], sha256: str
) -> tuple[PolicyArchitecture, Params]:
    """A policy's architecture and tensors.

    Args:
        store: Where its bytes are.
        policy_id: What to call it.
        spec: What is written down of it.
        sha256: Of its parameters.

    Raises:
        Corrupt: If the bytes are not those that were stored, or not such a policy.
    """
    policy = policy_from_json(spec)
    try:
        return policy, check_params(policy.shapes(), load_params(store.read(sha256)))
    except InvalidArtefact as error:
        raise Corrupt(f"{policy_id}: {error}") from error


def delete_policy(session: Session, by: Principal, policy_id: str) -> None:
    """Take a policy away; its bytes go when a worker next sweeps. A remote adaptation that changes it is cancelled.

    Raises:
        NotFound: As :func:`get_policy`.
    """
    policy = _find(session, policy_id)
    policy.deleted_at = now()
    adaptation = session.get(Adaptation, policy.adaptation_id or "")
    if adaptation is not None and adaptation.counts is not None:
        request_cancellation(session, Adaptation, adaptation.id)
    audit(session, by, "policies.delete", f"policies/{policy.id}")


def publish_policy(session: Session, store: ArtefactStore, by: Principal, policy_id: str, model: str) -> VersionEntry:
    """Make a policy the next version of a model.

    Its learner is that of the version that the policy comes from, so that it can be adapted further in the same way.

    Raises:
        Corrupt: If the bytes of the policy are not those that were stored.
        NotFound: As :func:`get_policy`.
    """
    policy = _find(session, policy_id)
    adaptation = session.get(Adaptation, policy.adaptation_id or "")
    parent = None if policy.model is None else find_version(session, policy.model, str(policy.version))
    learner, params = learner_of(session, policy), load_params(store.read(policy.sha256))
    if parent is not None:
        inherited = get_file(session, parent.model, str(parent.number), PARAMETERS_FILE)
        # What the learner has learned beside the policy, such as inner rates, goes with it.
        params = load_params(store.read(inherited.sha256)) | params
    about: dict[str, Any] = {"environment": policy.spec["environment"], "run": None, "policy_id": policy.id}
    if adaptation is not None:
        result = adaptation.result or {}
        returns = {f"return_{when}": result[when]["mean_return"] for when in ("before", "after") if result.get(when)}
        about |= {
            "adaptation": adaptation.id,
            "task": adaptation.task_definition,
            "revision": policy.revision,
            "method": adaptation.method,
            "seed": adaptation.seed,
            "metrics": returns,
        }
    manifest, parameters = pack(learner.config, learner.policy, params, about)
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    version = publish_version(session, model, json.loads(manifest), files, None, parent)
    audit(session, by, "policies.publish", f"policies/{policy.id}", model=model, version=version.number)
    return get_version(session, model, str(version.number))


def require_settled(session: Session, policy: Policy, pointer: str) -> None:
    """Refuse to build on a policy that may still change: what is asked for now would come of what it is later.

    Raises:
        Invalid: At the pointer, if its remote adaptation is not over.
    """
    adaptation = session.get(Adaptation, policy.adaptation_id or "")
    if adaptation is not None and adaptation.counts is not None and adaptation.state not in FINAL:
        detail = f"policy {policy.id} may still change: finish its adaptation, {adaptation.id}, or publish the policy"
        raise Invalid(pointer, detail)


def get_revision(session: Session, policy: Policy, revision: int | None) -> tuple[str, int]:
    """Digest and size of a policy's parameters as they were, or are (None).

    Raises:
        NotFound: If there is no such revision.
    """
    if revision is None or revision == policy.revision:
        return policy.sha256, policy.size_bytes
    row = session.get(PolicyRevision, (policy.id, revision))
    if row is None:
        raise NotFound(f"policy {policy.id} has no revision {revision}; the newest is {policy.revision}")
    return row.sha256, row.size_bytes


def learner_of(session: Session, policy: Policy) -> Learner[Any]:
    """What adapts a policy further: the learner of the version that it comes from, else MAML's inner loop."""
    if policy.model is not None:
        return learner_from_json(find_version(session, policy.model, str(policy.version)).manifest)
    return MAML(MAMLConfig(), policy_from_json(policy.spec))


def _stands() -> ColumnElement[bool]:
    return Policy.deleted_at.is_(None) & or_(Policy.expires_at.is_(None), Policy.expires_at > now())


def _find(session: Session, policy_id: str) -> Policy:
    policy = _standing(policy_id, session.get(Policy, policy_id))
    if isinstance(policy, NotFound):
        raise policy
    return policy


def _standing(policy_id: str, policy: Policy | None) -> Policy | NotFound:
    if policy is None:
        return NotFound(f"there is no policy {policy_id!r}")
    if policy.deleted_at is not None:
        return Gone(f"policy {policy_id} was deleted at {policy.deleted_at:%Y-%m-%dT%H:%M:%SZ}")
    if policy.expires_at is not None and policy.expires_at <= now():
        return Gone(f"policy {policy_id} expired at {policy.expires_at:%Y-%m-%dT%H:%M:%SZ}")
    return policy


def _entries(session: Session, policies: Sequence[Policy]) -> list[PolicyEntry]:
    ids = [policy.adaptation_id for policy in policies]
    adaptations = {row.id: row for row in session.scalars(select(Adaptation).where(Adaptation.id.in_(ids)))}
    entries = []
    for policy in policies:
        adaptation = adaptations.get(policy.adaptation_id or "")
        task = None if adaptation is None else adaptation.task_id or adaptation.task_definition
        entries.append(PolicyEntry(policy, task))
    return entries
