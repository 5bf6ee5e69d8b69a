"""Aliases: movable pointers to versions, with preconditions, history and rollback."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import Principal, audit
from app.database import exclusive, new_id, now
from app.errors import Conflict, Invalid, NotFound, PreconditionFailed
from app.evaluations.service import require_verdict
from app.pagination import Page, paginate
from app.registry.service import find_model
from app.tables import Alias, AliasEvent, Version


def set_alias(
    session: Session,
    by: Principal,
    model: str,
    alias: str,
    version: int,
    if_match: str | None = None,
    if_none_match: str | None = None,
    require_evaluation: str | None = None,
) -> tuple[Alias, bool]:
    """Point an alias to a version; its row and whether it is new.

    Args:
        session: A writing one.
        by: Who does it.
        model: The model.
        alias: The alias.
        version: A number of one of the model's versions.
        if_match: Revisions, one of which it must have now: an ``If-Match`` header.
        if_none_match: Revisions that it must not have; ``*``: it must not exist.
        require_evaluation: Id of an evaluation that must speak for the version
            (:func:`app.evaluations.service.require_verdict`).

    Raises:
        NotFound: If there is no such model.
        Invalid: If there is no such version or evaluation.
        Conflict: If the evaluation does not speak for the version.
        PreconditionFailed: If the alias is not as the caller last saw it.
    """
    row = _locked(session, model, alias)
    _check(row, alias, if_match, if_none_match)
    if session.scalar(select(Version.id).where(Version.model == model, Version.number == version)) is None:
        raise Invalid("/version", f"the model {model!r} has no version {version}")
    created = row is None
    if require_evaluation is not None:
        require_verdict(session, require_evaluation, model, version, None if row is None else row.version)
    return _move(session, by, "set", model, alias, row, version, require_evaluation), created


def get_alias(session: Session, model: str, alias: str) -> Alias:
    """The alias.

    Raises:
        NotFound: If there is none.
    """
    find_model(session, model)
    row = session.get(Alias, (model, alias))
    if row is None:
        raise NotFound(f"the model {model!r} has no alias {alias!r}")
    return row


def list_aliases(session: Session, model: str, page: Page) -> tuple[list[Alias], str | None]:
    """A page of a model's aliases, by name.

    Raises:
        NotFound: If there is no such model.
    """
    find_model(session, model)
    statement = select(Alias).where(Alias.model == model)
    return paginate(session, statement, Alias.alias, page, {"list": "aliases", "model": model})


def delete_alias(session: Session, by: Principal, model: str, alias: str, if_match: str | None = None) -> None:
    """Remove an alias; its history stays.

    Raises:
        NotFound: If there is none.
        PreconditionFailed: If it is not as the caller last saw it.
    """
    row = _locked(session, model, alias)
    _check(row, alias, if_match, None)
    if row is None:
        raise NotFound(f"the model {model!r} has no alias {alias!r}")
    _record(session, by, "delete", model, alias, None, row.version)
    session.delete(row)


def roll_back_alias(session: Session, by: Principal, model: str, alias: str, if_match: str | None = None) -> Alias:
    """Point an alias to the version it had before the one it has; once more, to the one before that.

    Raises:
        NotFound: If there is no such alias.
        Conflict: If it never had another version.
        PreconditionFailed: If it is not as the caller last saw it.
    """
    row = _locked(session, model, alias)
    _check(row, alias, if_match, None)
    if row is None:
        raise NotFound(f"the model {model!r} has no alias {alias!r}")
    passed = _passed(session, model, alias)
    if len(passed) < 2:
        raise Conflict(f"the alias {alias!r} had no version before {row.version}")
    return _move(session, by, "rollback", model, alias, row, passed[-2])


def list_alias_events(session: Session, model: str, alias: str, page: Page) -> tuple[list[AliasEvent], str | None]:
    """A page of what happened to an alias, newest first; a deleted alias keeps its history.

    Raises:
        NotFound: If there never was such an alias.
    """
    find_model(session, model)
    statement = select(AliasEvent).where(AliasEvent.model == model, AliasEvent.alias == alias)
    filters = {"list": "alias_events", "model": model, "alias": alias}
    rows, token = paginate(session, statement, AliasEvent.id, page, filters, newest_first=True)
    if not rows and page.token is None:
        raise NotFound(f"the model {model!r} never had an alias {alias!r}")
    return rows, token


def _locked(session: Session, model: str, alias: str) -> Alias | None:
    find_model(session, model)
    exclusive(session, f"alias:{model}:{alias}")
    return session.get(Alias, (model, alias))


def _check(row: Alias | None, alias: str, if_match: str | None, if_none_match: str | None) -> None:
    revision = None if row is None else row.revision
    if if_match is not None and not _listed(if_match, revision):
        state = "does not exist" if row is None else "was moved since"
        raise PreconditionFailed(f"the alias {alias!r} {state}")
    if if_none_match is not None and _listed(if_none_match, revision):
        raise PreconditionFailed(f"the alias {alias!r} exists")


def _listed(header: str, revision: str | None) -> bool:
    if header.strip() == "*":
        return revision is not None
    # Weak tags never match: RFC 9110 asks for the strong comparison here.
    return revision is not None and f'"{revision}"' in [tag.strip() for tag in header.split(",")]


def _move(
    session: Session,
    by: Principal,
    action: str,
    model: str,
    alias: str,
    row: Alias | None,
    version: int,
    evaluation: str | None = None,
) -> Alias:
    previous = None if row is None else row.version
    if row is None:
        row = Alias(model=model, alias=alias)
        session.add(row)
    row.version = version
    row.updated_at = now()
    row.revision = _record(session, by, action, model, alias, version, previous, evaluation)
    session.flush()
    return row


def _record(
    session: Session,
    by: Principal,
    action: str,
    model: str,
    alias: str,
    version: int | None,
    previous: int | None,
    evaluation: str | None = None,
) -> str:
    event = AliasEvent(
        id=new_id(),
        model=model,
        alias=alias,
        action=action,
        version=version,
        previous_version=previous,
        by=by.name,
        by_id=by.id or None,
    )
    session.add(event)
    detail = {} if evaluation is None else {"evaluation": evaluation}
    audit(session, by, f"aliases.{action}", f"models/{model}/aliases/{alias}", version=version, **detail)
    return event.id


def _passed(session: Session, model: str, alias: str) -> list[int]:
    """The versions it was moved through, without what rollbacks undid; the last is where it points."""
    passed: list[int] = []
    statement = select(AliasEvent).where(AliasEvent.model == model, AliasEvent.alias == alias)
    for event in session.scalars(statement.order_by(AliasEvent.id)):
        if event.action == "rollback":
            passed.pop()
        elif event.version is not None and event.version not in passed[-1:]:
            passed.append(event.version)
    return passed
