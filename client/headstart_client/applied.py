"""What definitions came to when they were applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headstart_client.wire import Resource


@dataclass(frozen=True, kw_only=True)
class Difference(Resource):
    """A member that does not stand as a definition wants it.

    Attributes:
        pointer: JSON pointer to it, within the definition: ``/parameters/length``.
        expected: What the definition says, defaults filled in.
        stands: What stands; ``None`` where it has no such member.
    """

    pointer: str
    expected: Any = None
    stands: Any = None


@dataclass(frozen=True, kw_only=True)
class Finding(Resource):
    """What one definition came to.

    Attributes:
        name: Of what stands now, would stand, or stands against it.
        outcome: ``created``, ``unchanged`` or ``conflict``.
        id: Of the task; ``None`` for a family, and for a task that does not stand.
        differences: Why it is a conflict.
    """

    name: str
    outcome: str
    id: str | None = None
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Applied(Resource):
    """What definitions came to, in their order.

    Attributes:
        applied: Whether they stand now; not so after a dry run.
        families: Of each family.
        tasks: Of each task.
    """

    applied: bool
    families: tuple[Finding, ...] = ()
    tasks: tuple[Finding, ...] = ()

    def count(self, outcome: str) -> int:
        """How many came to that."""
        return sum(each.outcome == outcome for each in (*self.families, *self.tasks))
