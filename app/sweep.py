"""Removing artefacts that nothing refers to any longer."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta
from math import inf
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.database import Database, now
from app.store import ArtefactStore
from app.tables import Adaptation, Checkpoint, Evaluation, EvaluationFile, Policy, PolicyRevision, VersionFile

GRACE = timedelta(hours=1)
"""An artefact stays at least this long: it is stored before the row that refers to it is committed."""

_CHUNK = 500


def referenced(session: Session, digests: Collection[str]) -> set[str]:
    """Those of the digests that a version, a policy that still stands, an evaluation, or a checkpoint refers to."""
    standing = Policy.deleted_at.is_(None) & or_(Policy.expires_at.is_(None), Policy.expires_at > now())
    return {
        digest
        for statement in (
            select(VersionFile.sha256).where(VersionFile.sha256.in_(digests)),
            select(Checkpoint.sha256).where(Checkpoint.sha256.in_(digests)),
            select(Policy.sha256).where(Policy.sha256.in_(digests), standing),
            select(PolicyRevision.sha256)
            .join(Policy, Policy.id == PolicyRevision.policy_id)
            .where(PolicyRevision.sha256.in_(digests), standing),
            select(Adaptation.checkpoint_sha256).where(Adaptation.checkpoint_sha256.in_(digests)),
            select(Evaluation.checkpoint_sha256).where(Evaluation.checkpoint_sha256.in_(digests)),
            select(EvaluationFile.sha256).where(EvaluationFile.sha256.in_(digests)),
        )
        for digest in session.scalars(statement)
        if digest is not None
    }


def discard(database: Database, store: ArtefactStore, digests: Collection[str]) -> None:
    """Remove those of these artefacts that nothing refers to any longer."""
    if not digests:
        return
    with database.snapshot() as session:
        kept = referenced(session, digests)
    for digest in set(digests) - kept:
        store.delete(digest)


def sweep(database: Database, store: ArtefactStore, grace: timedelta = GRACE) -> int:
    """Remove what is left of expired and deleted policies, and of writers that died.

    Returns:
        Number of files removed.
    """
    before = time.time() - grace.total_seconds()
    # Hidden files are drafts of artefacts.
    old = [path for path in store.folder.glob("*/*") if _modified_at(path) < before]
    removed = 0
    for start in range(0, len(old), _CHUNK):
        chunk = old[start : start + _CHUNK]
        with database.snapshot() as session:
            kept = referenced(session, [path.name for path in chunk])
        for path in chunk:
            if path.name not in kept:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        # A draft that has just become an artefact, or what another worker has just removed.
        return inf
