"""Lists in pages: keyset pagination, whose pages do not shift when rows are added meanwhile."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.errors import BadRequest
from models.types import sha256_of

Row = TypeVar("Row")

_NUMBER_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for.

    Attributes:
        size: Rows at most, 1 to 1000.
        token: Where the previous page ended, as it was given; None for the first page.
    """

    size: int = 50
    token: str | None = None


def _page(
    page_size: Annotated[int, Query(ge=1, le=1000, description="Rows at most.")] = 50,
    page_token: Annotated[
        str | None, Query(max_length=4096, description="`next_page_token` of the page before.")
    ] = None,
) -> Page:
    return Page(page_size, page_token)


RequestPage = Annotated[Page, Depends(_page)]
"""The query parameters ``page_size`` and ``page_token``."""


def paginate(
    session: Session,
    statement: Select[Row],
    key: InstrumentedAttribute[Any],
    page: Page,
    filters: Mapping[str, Any],
    *,
    newest_first: bool = False,
) -> tuple[list[Row], str | None]:
    """One page of a statement's rows, and the token of the next; None on the last page.

    Args:
        session: Where to read.
        statement: Selects one entity, filtered but neither ordered nor limited.
        key: A unique column of the entity to order by: its id (which sorts by time), its name or number.
        page: Which page.
        filters: What the list is and how it was filtered, in JSON values. A token is good only for the same.
        newest_first: Descending order of the key.

    Raises:
        BadRequest: If the token is none of ours, or comes from a list with other filters.
    """
    digest = sha256_of(dict(filters))[:16]
    if page.token:
        after = _read(page.token, digest, key.type.python_type)
        statement = statement.where(key < after if newest_first else key > after)
    statement = statement.order_by(key.desc() if newest_first else key).limit(page.size + 1)
    rows = list(session.scalars(statement))
    if len(rows) <= page.size:
        return rows, None
    rows.pop()
    return rows, _write(getattr(rows[-1], key.key), digest)


def paginate_names(names: Iterable[str], page: Page, filters: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """:func:`paginate` for names that are in memory, in their order.

    Raises:
        BadRequest: As there.
    """
    digest = sha256_of(dict(filters))[:16]
    after = _read(page.token, digest, str) if page.token else ""
    rows = sorted(name for name in names if name > str(after))
    if len(rows) <= page.size:
        return rows, None
    return rows[: page.size], _write(rows[page.size - 1], digest)


def _write(after: str | int, digest: str) -> str:
    document = json.dumps([after, digest], separators=(",", ":"))
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def _read(token: str, digest: str, kind: type) -> str | int:
    refusal = BadRequest("the page_token is not valid; take next_page_token of the page before")
    try:
        document = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise refusal from error
    match document:
        case [str(after), str(found)] if kind is str and "\0" not in after and after.isprintable():
            pass
        case [int(after), str(found)] if kind is int and 0 <= after <= _NUMBER_LIMIT:
            pass
        case _:
            raise refusal
    if found != digest:
        raise BadRequest("the page_token comes from a list with other filters; start again without it")
    result: str | int = after
    return result
