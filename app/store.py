"""Artefacts: big bytes in files named by their sha256, written once."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from pathlib import Path

from app.errors import Corrupt, StorageFull

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ArtefactStore:
    """A folder of artefacts, ``<aa>/<sha256>``, that any number of processes may write to and read.

    Args:
        folder: Made with the first artefact.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, content: bytes) -> tuple[str, int]:
        """Store the bytes, durably, unless they stand; their hex sha256 and their number.

        Raises:
            StorageFull: If there is no room; no part of them stays behind.
            OSError: If the folder cannot be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.path(sha256)
        if self._holds(sha256):
            # It may have been of no use for long; app.sweep takes only what is old.
            os.utime(target)
            return sha256, len(content)
        try:
            self._write(target, content)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull(f"an artefact of {len(content)} bytes cannot be written") from error
            raise
        return sha256, len(content)

    def read(self, sha256: str) -> bytes:
        """The bytes of an artefact, checked.

        Raises:
            Corrupt: If the file is missing or its bytes have another digest.
        """
        try:
            content = self.path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise Corrupt(f"artefact {sha256} is missing") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Corrupt(f"artefact {sha256} holds other bytes")
        return content

    def path(self, sha256: str) -> Path:
        """Where the artefact lies, or would.

        Raises:
            ValueError: If this is not a hex sha256.
        """
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self.folder / sha256[:2] / sha256

    def delete(self, sha256: str) -> None:
        """Remove the artefact, if it stands. Nothing may refer to it any longer."""
        self.path(sha256).unlink(missing_ok=True)

    def _holds(self, sha256: str) -> bool:
        # Read it through: what is damaged is mended by writing it again.
        try:
            self.read(sha256)
        except Corrupt:
            return False
        return True

    def _write(self, target: Path, content: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with draft.open("xb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        # The new name is durable only when its folder is, and the folder's when its parent is.
        for folder in (target.parent, self.folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
