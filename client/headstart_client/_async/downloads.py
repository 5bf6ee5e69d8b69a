"""Files from the service: resumed where they broke off, checked before they are put in place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import httpx

from headstart_client._async.transport import AsyncTransport
from headstart_client.downloads import ETAG, RANGE, digest_of
from headstart_client.errors import DigestMismatch, InvalidResponse, Problem


async def download(transport: AsyncTransport, path: str, to: Path, sha256: str | None = None) -> Path:
    """Fetch a file to ``to``; nothing is transferred when it is there already.

    Bytes gather in ``<to>.part``, which a later call continues; ``to`` appears whole and checked or not at
    all.

    Args:
        transport: The service.
        path: Path of the file on the service.
        to: Where to put it; folders are made.
        sha256: Its hex digest; otherwise the one in the response's ETag.

    Returns:
        ``to``.

    Raises:
        DigestMismatch: If the bytes are not those that were promised.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    here = await asyncio.to_thread(digest_of, to) if to.exists() else None
    fetch = _Download(transport, path, to, sha256, here if sha256 in (None, here) else None)
    await transport.repeat(fetch.once)
    return to


async def write_body(response: httpx.Response, to: Path, mode: Literal["wb", "ab"] = "wb") -> None:
    """Write the body of a stream to a file, or append it."""
    with to.open(mode) as file:
        async for chunk in response.aiter_bytes():
            file.write(chunk)


class _Download:
    def __init__(self, transport: AsyncTransport, path: str, to: Path, sha256: str | None, here: str | None) -> None:
        self._transport = transport
        self._path = path
        self._to = to
        self._part = to.with_name(to.name + ".part")
        self._sha256 = sha256
        self._promised = sha256
        self._here = here

    async def once(self, attempt: int) -> None:
        offset = self._part.stat().st_size if self._part.exists() and self._promised else 0
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self._here:
            headers["If-None-Match"] = f'"sha256-{self._here}"'
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": f'"sha256-{self._promised}"'}
        try:
            resumed = await self._receive(headers, offset)
        except Problem as problem:
            if problem.status != 416:
                raise
            self._part.unlink()  # longer than the file: left over from something else
            return await self.once(attempt)
        if resumed is not None:
            await self._put_in_place(resumed)
        return None

    async def _receive(self, headers: dict[str, str], offset: int) -> bool | None:
        """Write the body; True if it continued a part, None if the file here is current."""
        async with self._transport.stream(self._path, headers) as response:
            if response.status_code == 304:
                return None
            tag = ETAG.match(response.headers.get("etag", ""))
            served = tag[1] if tag else None
            start = RANGE.match(response.headers.get("content-range", ""))
            resumed = response.status_code == 206 and start is not None and int(start[1]) == offset > 0
            if response.status_code == 206 and not resumed:
                raise InvalidResponse(f"{self._path}: the service sent another range than was asked for")
            if self._sha256 is None:
                self._promised = served
            await write_body(response, self._part, "ab" if resumed else "wb")
        return resumed

    async def _put_in_place(self, resumed: bool) -> None:
        found = await asyncio.to_thread(digest_of, self._part)
        if self._promised and found != self._promised:
            self._part.unlink()
            error = DigestMismatch(f"{self._path} has sha256 {found}, but {self._promised} was promised")
            error.transient = resumed  # the part here may have been the wrong one
            raise error
        self._part.replace(self._to)
