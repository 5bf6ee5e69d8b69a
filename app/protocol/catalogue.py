"""From the names of the Open Inference Protocol to policies in memory."""

from __future__ import annotations

import re
from typing import NamedTuple, final

from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.errors import Gone, NotFound
from app.inference import PolicyBank
from app.protocol import service
from app.slots import Hot

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"[0-9]{1,9}")


class Served(NamedTuple):
    """What a name stands for.

    Attributes:
        name: A policy's id or a model's name.
        version: The policy's revision or the model's version.
        entry: The policy in memory: to act with at once, or to be copied.
    """

    name: str
    version: str
    entry: Hot


@final
class Catalogue:
    """Finds what a name and a version stand for; use it on the event loop.

    Args:
        bank: The policies.
        database: Where names are looked up that do not say the version.
    """

    def __init__(self, bank: PolicyBank, database: Database) -> None:
        self._bank = bank
        self._database = database

    async def find(self, name: str, version: str = "", revision: int = 0) -> Served:
        """The policy, or the bare initialisation of the version, in memory.

        Args:
            name: A policy's id; or ``model``, or ``model@alias``.
            version: A policy's revision or a model's version; empty: the newest, or the alias's.
            revision: Which revision a policy must have at least.

        Raises:
            NotFound: If there is none; Gone, if it was there.
            Corrupt: If its bytes are not those that were stored.
        """
        if version and not _NUMBER.fullmatch(version):
            raise NotFound(f"there is no version {version!r} of {name!r}: versions are numbers")
        number = int(version) if version else None
        if _ID.fullmatch(name):
            entry = await self._load(name, max(revision, number or 0))
            if number not in (None, entry.revision):
                raise Gone(f"policy {name} has revision {entry.revision} now; earlier ones are served no longer")
            return Served(name, str(entry.revision), entry)
        if number is None or "@" in name:
            model, found = await run_in_threadpool(self._resolve, name)
            if number not in (None, found):
                raise NotFound(f"{name!r} is version {found}, not {number}")
        else:
            model, found = name, number
        return Served(model, str(found), await self._load(f"{model}/{found}", revision))

    async def versions(self, served: Served) -> list[str]:
        """All versions by which it can be asked for."""
        if _ID.fullmatch(served.name):
            return [served.version]
        return await run_in_threadpool(self._numbers, served.name)

    async def _load(self, key: str, revision: int) -> Hot:
        return self._bank.hot(key, revision) or await self._bank.load(key, revision)

    def _resolve(self, reference: str) -> tuple[str, int]:
        with self._database.snapshot() as session:
            return service.find_version(session, reference)

    def _numbers(self, model: str) -> list[str]:
        with self._database.snapshot() as session:
            return [str(number) for number in service.list_numbers(session, model)]
