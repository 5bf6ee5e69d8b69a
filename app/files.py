"""Serving artefacts: whole or in part, and not at all to whom has them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.errors import RangeNotSatisfiable
from app.store import ArtefactStore

_OCTETS = "application/octet-stream"

_KINDS = {
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "png": "image/png",
}

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def file_responses(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of the answers of :func:`serve_file`, for files of these media types."""
    content: dict[str, Any] = {media_type: {} for media_type in media_types}
    if _OCTETS in content:  # with a schema, because generators of clients throw away what has none
        content[_OCTETS] = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"description": "The whole file", "content": content},
        206: {"description": "The range that was asked for", "content": content},
        304: {"description": "The file is still the one of If-None-Match"},
    }


def serve_file(request: Request, store: ArtefactStore, name: str, sha256: str, size_bytes: int) -> Response:
    """The answer to a GET or HEAD of an artefact.

    The ETag is the digest, so ``If-None-Match`` is answered 304 and ``If-Range`` holds exactly for the same bytes. One
    range is honoured; several, or one in another unit, give the whole file, as RFC 9110 allows.

    Raises:
        RangeNotSatisfiable: If the range starts after the end.
        Corrupt: If the stored bytes have another digest; wrong bytes are never sent.
    """
    return _serve(request, name, sha256, size_bytes, partial(store.read, sha256))


def serve_made(request: Request, name: str, content: bytes) -> Response:
    """The answer to a GET or HEAD of a file that was made for it, as :func:`serve_file` gives it.

    Raises:
        RangeNotSatisfiable: As there.
    """
    return _serve(request, name, hashlib.sha256(content).hexdigest(), len(content), lambda: content)


def _serve(request: Request, name: str, sha256: str, size_bytes: int, read: Callable[[], bytes]) -> Response:
    etag = f'"sha256-{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        # The bytes under an ETag never change, but who may read them can.
        "Cache-Control": "private, no-cache",
        "Content-Type": _KINDS.get(name.rpartition(".")[2], _OCTETS),
        # Reports show names that users chose: nothing in one may run or load, whatever it says.
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={"ETag": etag})
    part = _part(request, etag, size_bytes)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size_bytes)})
    content = read()
    if part is None:
        return Response(content, headers=headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size_bytes}"
    return Response(content[part.start : part.stop], status_code=206, headers=headers)


def _matches(header: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or tags == ["*"]


def _part(request: Request, etag: str, size: int) -> range | None:
    header = request.headers.get("range", "")
    found = _RANGE.fullmatch(header.replace(" ", ""))
    if found is None or found.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size or stop <= start:
        raise RangeNotSatisfiable(size)
    return range(start, stop)
