"""Files from the service: what names, checks and continues them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from headstart_client.errors import InvalidResponse

ETAG = re.compile(r'^"sha256-([0-9a-f]{64})"$')
RANGE = re.compile(r"^bytes (\d+)-")


def plain_name(name: str) -> str:
    """A file name from the service, refused if it could lead out of the folder it is written to.

    Raises:
        InvalidResponse: If it has folders in it or is hidden.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise InvalidResponse(f"the service named a file {name!r}")
    return name


def digest_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
