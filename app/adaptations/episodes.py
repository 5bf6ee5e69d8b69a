"""Episodes of remote adaptations: taking them in, listing them, giving them back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.adaptations.counts import Counts
from app.adaptations.pieces import Piece, join, load_arrays, read_pieces
from app.adaptations.remote import open_adaptation, remote_task, require_open, touch
from app.database import Database, now
from app.errors import Conflict
from app.pagination import Page, paginate
from app.tables import Adaptation, Episode, EpisodePiece
from app.validation import FieldError, pointer_to
from app.work import get_work
from models.experience import Episode as Acted

STEPS_AT_ONCE = 2000
"""Steps of a download's episodes that are in memory at a time, unless one episode has more."""

_EPISODES_AT_ONCE = 50


@dataclass(frozen=True)
class Stored:
    """What became of an upload: pieces that are new, pieces that stood already, and the adaptation."""

    accepted: int
    duplicates: int
    adaptation: Adaptation


def upload(database: Database, adaptation_id: str, body: bytes) -> Stored:
    """Read and store what a client has sent; all of it or nothing.

    Nothing is locked while it is read.

    Raises:
        BadRequest: If the body is not JSON.
        Conflict: If the adaptation takes no episodes, or one stands with other content.
        Gone: If its policy has expired.
        Invalid: With a pointer to each member at fault.
        NotFound: If there is no such adaptation.
        PayloadTooLarge: If there are too many pieces.
    """
    with database.snapshot() as session:
        row = get_work(session, Adaptation, adaptation_id)
        newest = require_open(session, row).revision
    pieces = read_pieces(remote_task(row), newest, body)
    with database.transaction() as session:
        row, _ = open_adaptation(session, adaptation_id)
        return store(session, row, pieces)


def store(session: Session, row: Adaptation, pieces: Sequence[Piece]) -> Stored:
    """Store the pieces that are new, and have a step taken if enough is in; the adaptation must be locked.

    Raises:
        Conflict: If an episode stands with other content, or a piece does not go with the others; nothing is stored.
    """
    ledger = _Ledger(session, row.id, {piece.id for piece in pieces})
    for piece in pieces:
        ledger.add(piece)
    counts = Counts.of(row)
    touch(row, ledger.write(counts))
    session.flush()
    return Stored(len(pieces) - ledger.duplicates, ledger.duplicates, row)


def list_episodes(session: Session, adaptation_id: str, page: Page) -> tuple[list[Episode], str | None]:
    """A page of an adaptation's episodes, in the order in which they came.

    Raises:
        NotFound: If there is no such adaptation.
    """
    get_work(session, Adaptation, adaptation_id)
    statement = select(Episode).where(Episode.adaptation_id == adaptation_id)
    return paginate(session, statement, Episode.sequence, page, {"list": "episodes", "of": adaptation_id})


def lines(database: Database, adaptation_id: str) -> Iterator[bytes]:
    """Every episode as a line of JSON, in the order in which they came, a few in memory at a time.

    A line is a member of ``episodes``, a whole episode where it is complete, else one piece. It can be sent again, but
    for those of recorded actions: an upload refuses their ids.
    """
    after = 0
    while (last := _last_that_fits(database, adaptation_id, after)) is not None:
        yield from _lines_between(database, adaptation_id, after, last)
        after = last


def pieces_of(session: Session, adaptation_id: str, ids: Sequence[str]) -> dict[str, list[EpisodePiece]]:
    """The pieces of episodes, by their ids, in the order of their steps."""
    found: dict[str, list[EpisodePiece]] = {id_: [] for id_ in ids}
    for chunk in _chunks(ids):
        of = (EpisodePiece.adaptation_id == adaptation_id) & EpisodePiece.episode_id.in_(chunk)
        for piece in session.scalars(select(EpisodePiece).where(of).order_by(EpisodePiece.offset)):
            found[piece.episode_id].append(piece)
    return found


def load_episode(row: Episode, pieces: Sequence[EpisodePiece]) -> Acted:
    """A complete episode for the core."""
    arrays = join([load_arrays(piece.payload) for piece in pieces])
    return Acted(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminated=row.terminated,
        revision=row.revision,
        log_prob=arrays.get("log_probs"),
        policy_action=arrays.get("policy_actions"),
    )


@dataclass
class _Entry:
    """A piece that stands, or is about to."""

    offset: int
    steps: int
    digest: str
    arrays: dict[str, NDArray[Any]] | None = None

    @property
    def end(self) -> int:
        return self.offset + self.steps


@dataclass
class _Account:
    """What is known of one episode."""

    row: Episode | None
    entries: dict[int, _Entry] = field(default_factory=dict)
    new: list[Piece] = field(default_factory=list)
    revision: int = 0
    length: int | None = None


class _Ledger:
    """The episodes of a request beside what stands of them."""

    def __init__(self, session: Session, adaptation_id: str, ids: Iterable[str]) -> None:
        self._session = session
        self._adaptation_id = adaptation_id
        self._accounts: dict[str, _Account] = {}
        self.duplicates = 0
        for chunk in _chunks(sorted(ids)):
            self._read(chunk)

    def _read(self, ids: Sequence[str]) -> None:
        of = (Episode.adaptation_id == self._adaptation_id) & Episode.id.in_(ids)
        for row in self._session.scalars(select(Episode).where(of)):
            self._accounts[row.id] = _Account(row, revision=row.revision, length=row.length)
        known = [id_ for id_ in ids if id_ in self._accounts]
        columns = (EpisodePiece.episode_id, EpisodePiece.offset, EpisodePiece.steps, EpisodePiece.digest)
        pieces = (EpisodePiece.adaptation_id == self._adaptation_id) & EpisodePiece.episode_id.in_(known)
        for id_, offset, steps, digest in self._session.execute(select(*columns).where(pieces)) if known else ():
            self._accounts[id_].entries[offset] = _Entry(offset, steps, digest)

    def add(self, piece: Piece) -> None:
        """Enter a piece, unless it stands."""
        account = self._accounts.setdefault(piece.id, _Account(None, revision=piece.revision))
        standing = account.entries.get(piece.offset)
        if standing is not None and standing.digest == piece.digest:
            self.duplicates += 1
            return
        if (reason := self._against(piece, account)) is not None:
            errors = [FieldError(pointer_to("episodes", piece.place), reason)]
            raise Conflict(f"episode {piece.id!r} {reason}; nothing was stored", errors=errors)
        account.entries[piece.offset] = _Entry(piece.offset, piece.steps, piece.digest, piece.arrays)
        account.new.append(piece)
        if piece.is_last:
            account.length = piece.end

    def _against(self, piece: Piece, account: _Account) -> str | None:
        """What speaks against a new piece."""
        if piece.offset in account.entries:
            return f"stands with other content from step {piece.offset} on"
        if piece.revision != account.revision:
            return f"stands with revision {account.revision}, and a piece of it says {piece.revision}"
        ends = [entry.end for entry in account.entries.values()]
        if account.length is not None and piece.end > account.length:
            return f"stands as over after step {account.length}, and a piece goes on to step {piece.end}"
        if piece.is_last and (account.length is not None or any(end > piece.end for end in ends)):
            return f"stands up to step {max(ends)}, and a piece says that it is over after step {piece.end}"
        for entry in account.entries.values():
            if entry.offset < piece.end and piece.offset < entry.end:
                return f"stands from step {entry.offset} to {entry.end}, and a piece overlaps with that"
            if piece.offset == entry.end and (reason := _seam(self._arrays(piece, entry), piece.arrays)):
                return f"{reason} at step {piece.offset}, where two of its pieces meet"
            if piece.end == entry.offset and (reason := _seam(piece.arrays, self._arrays(piece, entry))):
                return f"{reason} at step {piece.end}, where two of its pieces meet"
        return None

    def _arrays(self, piece: Piece, entry: _Entry) -> dict[str, NDArray[Any]]:
        if entry.arrays is None:
            stored = self._session.get_one(EpisodePiece, (self._adaptation_id, piece.id, entry.offset))
            entry.arrays = load_arrays(stored.payload)
        return entry.arrays

    def write(self, counts: Counts) -> Counts:
        """Store what is new; the counts with it."""
        added, changed, pieces = [], [], []
        for id_, account in self._accounts.items():
            if not account.new:
                continue
            state = self._state(account)
            if state["complete"]:
                episodes, steps = counts.episodes + 1, counts.environment_steps + state["steps"]
                counts = replace(counts, episodes=episodes, environment_steps=steps)
            key = {"adaptation_id": self._adaptation_id, "id": id_}
            if account.row is not None:
                changed.append(key | state)
            else:
                counts = replace(counts, sequence=counts.sequence + 1)
                about = {"sequence": counts.sequence, "revision": account.revision, "created_at": now()}
                added.append(key | about | state)
            pieces += [self._piece(piece) for piece in account.new]
        for statement, values in (
            (insert(Episode), added),
            (update(Episode), changed),
            (insert(EpisodePiece), pieces),
        ):
            if values:
                self._session.execute(statement, values)
        return counts

    def _piece(self, piece: Piece) -> dict[str, Any]:
        return {
            "adaptation_id": self._adaptation_id,
            "episode_id": piece.id,
            "offset": piece.offset,
            "steps": piece.steps,
            "digest": piece.digest,
            "payload": piece.payload,
        }

    @staticmethod
    def _state(account: _Account) -> dict[str, Any]:
        """What an episode's row says of the pieces that are in."""
        row, last = account.row, next((piece for piece in account.new if piece.is_last), None)
        steps = sum(entry.steps for entry in account.entries.values())
        before = 0.0 if row is None else row.episode_return
        return {
            "steps": steps,
            "length": account.length,
            "episode_return": before + sum(float(piece.arrays["rewards"].sum()) for piece in account.new),
            "terminated": last.terminated if last is not None else row is not None and row.terminated,
            "truncated": last.truncated if last is not None else row is not None and row.truncated,
            "complete": steps == account.length,
        }


def _seam(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> str | None:
    """Why two consecutive pieces are not of one episode."""
    if not np.array_equal(first["observations"][-1], second["observations"][0]):
        return "has two observations"
    if uneven := sorted(set(first) ^ set(second)):
        return f"has {uneven[0]} on one side only"
    return None


def _last_that_fits(database: Database, adaptation_id: str, after: int) -> int | None:
    """Number of the last of the next episodes that are read at once; None where there are no more."""
    following = (Episode.adaptation_id == adaptation_id) & (Episode.sequence > after)
    sizes = select(Episode.sequence, Episode.steps).where(following).order_by(Episode.sequence).limit(_EPISODES_AT_ONCE)
    last, total = None, 0
    with database.snapshot() as session:
        for sequence, steps in session.execute(sizes):
            total += steps
            if last is not None and total > STEPS_AT_ONCE:
                break
            last = sequence
    return last


def _lines_between(database: Database, adaptation_id: str, after: int, last: int) -> Iterator[bytes]:
    of = (Episode.adaptation_id == adaptation_id) & (Episode.sequence > after) & (Episode.sequence <= last)
    same = (EpisodePiece.adaptation_id == Episode.adaptation_id) & (EpisodePiece.episode_id == Episode.id)
    # One statement: what is known of an episode is then of these very pieces, whatever comes in meanwhile.
    both = select(Episode, EpisodePiece).join(EpisodePiece, same).where(of)
    with database.snapshot() as session:
        found = session.execute(both.order_by(Episode.sequence, EpisodePiece.offset)).all()
    for row, group in itertools.groupby(found, lambda each: each[0]):
        yield from _lines(row, [piece for _, piece in group])


def _lines(row: Episode, pieces: Sequence[EpisodePiece]) -> Iterator[bytes]:
    parts = [load_arrays(piece.payload) for piece in pieces]
    offsets = [piece.offset for piece in pieces]
    if row.complete:
        parts, offsets = [join(parts)], [0]
    for arrays, offset in zip(parts, offsets, strict=True):
        is_last = offset + len(arrays["rewards"]) == row.length
        whole = {
            "id": row.id,
            "revision": row.revision,
            **{name: values.tolist() for name, values in arrays.items()},
            "terminated": is_last and row.terminated,
            "truncated": is_last and row.truncated,
            "offset": offset,
        }
        yield msgspec.json.encode(whole) + b"\n"


def _chunks(ids: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    # SQLite takes only so many parameters.
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
