"""What stands for a model of the Open Inference Protocol: policies, by their ids, and versions of models."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from app.errors import BadRequest, Invalid, NotFound
from app.pagination import Page, paginate
from app.policies.service import list_policies
from app.registry.service import resolve
from app.tables import Version

MOST_VERSIONS = 1000
"""Versions of a model that its metadata list: the newest."""


def find_version(session: Session, reference: str) -> tuple[str, int]:
    """Model and number of the version that ``model@alias``, or ``model`` for its newest, stands for.

    Raises:
        NotFound: If there is none.
    """
    try:
        version = resolve(session, reference, pointer="")
    except Invalid as error:
        raise NotFound(error.detail) from error
    return version.model, version.number


def list_numbers(session: Session, model: str) -> list[int]:
    """The numbers of a model's newest versions, ascending."""
    statement = select(Version.number).where(Version.model == model).order_by(Version.number.desc())
    return list(session.scalars(statement.limit(MOST_VERSIONS)))[::-1]


def list_served(session: Session, page: Page) -> tuple[list[tuple[str, str]], str | None]:
    """A page of what may be asked: names and versions, of models and then policies, each newest first.

    Raises:
        BadRequest: If the page's token is none of ours.
    """
    kind, _, token = (page.token or "versions.").partition(".")
    served: list[tuple[str, str]] = []
    if kind == "versions":
        statement = select(Version).options(load_only(Version.model, Version.number))
        part = Page(page.size, token or None)
        versions, more = paginate(session, statement, Version.id, part, {"list": "served"}, newest_first=True)
        served = [(version.model, str(version.number)) for version in versions]
        if more is not None or len(served) == page.size:
            return served, "policies." if more is None else f"versions.{more}"
        token = ""
    elif kind != "policies":
        raise BadRequest("the page_token is not valid; take the one of the page before")
    entries, more = list_policies(session, Page(page.size - len(served), token or None))
    served += [(entry.policy.id, str(entry.policy.revision)) for entry in entries]
    return served, None if more is None else f"policies.{more}"
