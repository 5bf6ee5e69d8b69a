"""Asking for evaluations and finding them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import tables
from app.auth import Principal, audit
from app.database import new_id
from app.errors import Conflict, Invalid, NotFound
from app.evaluations.protocol import decide
from app.evaluations.schemas import NewEvaluation
from app.pagination import Page, paginate
from app.store import ArtefactStore
from app.work import get_work

RESULT_FILE = "evaluation.json"
"""The evaluation whole: protocol, results and every run."""


def create_evaluation(session: Session, by: Principal, request: NewEvaluation) -> tables.Evaluation:
    """Queue an evaluation. What it measures is decided now: aliases that move and tasks that go change nothing.

    Raises:
        Invalid: As :func:`app.evaluations.protocol.decide`. InvalidValue: As there.
    """
    row = tables.Evaluation(id=new_id(), name=request.name, **decide(session, request))
    session.add(row)
    audit(session, by, "evaluations.create", f"evaluations/{row.id}", name=request.name)
    session.flush()
    return row


def list_evaluations(
    session: Session, page: Page, name: str | None, state: str | None
) -> tuple[list[tables.Evaluation], str | None]:
    """A page of evaluations, newest first."""
    statement = select(tables.Evaluation)
    if name is not None:
        statement = statement.where(tables.Evaluation.name == name)
    if state is not None:
        statement = statement.where(tables.Evaluation.state == state)
    filters = {"list": "evaluations", "name": name, "state": state}
    return paginate(session, statement, tables.Evaluation.id, page, filters, newest_first=True)


def list_files(session: Session, evaluation_id: str) -> Sequence[tables.EvaluationFile]:
    """The files of an evaluation, by name."""
    file = tables.EvaluationFile
    return session.scalars(select(file).where(file.evaluation_id == evaluation_id).order_by(file.name)).all()


def get_file(session: Session, evaluation_id: str, name: str) -> tables.EvaluationFile:
    """A file of an evaluation.

    Raises:
        NotFound: If there is no such evaluation, it has not succeeded, or it has no such file.
    """
    state = get_work(session, tables.Evaluation, evaluation_id).state
    file = session.get(tables.EvaluationFile, (evaluation_id, name))
    if file is None:
        reason = f"has no file {name!r}" if state == "succeeded" else f"is {state}: it has files once it has succeeded"
        raise NotFound(f"evaluation {evaluation_id!r} {reason}")
    return file


def read_result(session: Session, store: ArtefactStore, evaluation_id: str) -> dict[str, Any] | None:
    """What an evaluation found; None where it has not succeeded.

    Raises:
        Corrupt: If the stored bytes are not those that were stored.
    """
    file = session.get(tables.EvaluationFile, (evaluation_id, RESULT_FILE))
    if file is None:
        return None
    result: dict[str, Any] = json.loads(store.read(file.sha256))["result"]
    return result


def require_verdict(session: Session, evaluation_id: str, model: str, version: int, current: int | None) -> None:
    """Refuse to move an alias to a version unless an evaluation speaks for it.

    It must have succeeded, without leakage, with the version as its first subject, compared with the version that the
    alias points to, if it points to another one, and not found worse than that.

    Raises:
        Invalid: If there is no such evaluation.
        Conflict: If it does not speak for the version.
    """
    pointer = "/require_evaluation"
    try:
        row = get_work(session, tables.Evaluation, evaluation_id)
    except NotFound as error:
        raise Invalid(pointer, error.detail) from error
    wanted = f"{model}/{version}"
    subjects = row.spec["subjects"]
    found = zip(subjects, row.verdicts or [], strict=False)
    verdicts = {each["label"]: verdict for each, verdict in found if each["kind"] == "version"}
    if row.state != "succeeded":
        raise Conflict(f"evaluation {row.id} is {row.state}: only one that has succeeded speaks for {wanted}")
    if (subjects[0]["kind"], subjects[0]["label"]) != ("version", wanted):
        raise Conflict(f"evaluation {row.id} is about {subjects[0]['label']}, not {wanted}")
    if row.spec["leakage"]:
        raise Conflict(f"evaluation {row.id} has leakage: {row.spec['leakage'][0]['detail']}")
    if current in (None, version):
        return
    standing = f"{model}/{current}"
    if standing not in verdicts:
        raise Conflict(f"evaluation {row.id} does not compare {wanted} with {standing}, where the alias points")
    if verdicts[standing] == "worse":
        raise Conflict(f"evaluation {row.id} found {wanted} worse than {standing}")
