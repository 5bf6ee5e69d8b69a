"""Where hot policies lie: in blocks of their architecture, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.runtime import Architecture, Array, NumpyPolicy


@dataclass(slots=True, weakref_slot=True, eq=False)
class Block:
    """Policies of one architecture side by side.

    Attributes:
        shelf: Of which it is one.
        arrays: The policies, with a leading axis of slots.
        names: Who lies in each slot; None where it is free.
        version: How often that has changed.
    """

    shelf: Shelf
    arrays: dict[str, Array]
    names: list[str | None]
    version: int = 0

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.names) * self.shelf.architecture.size_bytes

    @property
    def is_single(self) -> bool:
        """Whether it has one slot, as that of a large policy has: its arrays are then never written to."""
        return len(self.names) == 1


@dataclass(slots=True, weakref_slot=True)
class Shelf:
    """The blocks of one architecture, of which the free slots are known; it lasts as long as they."""

    architecture: Architecture
    free: list[tuple[Block, int]] = field(default_factory=list)


@dataclass(slots=True)
class Hot:
    """A policy in memory.

    Attributes:
        policy: To act with at once, on the event loop; what is to act elsewhere or later needs a copy of it.
        revision: Which of its revisions.
        sha256: Of a policy's parameters; empty for a version, which never changes.
        expires_s: When it ends, in seconds since 1970.
        block: Where it lies in the bank; None of one that has no place there.
        slot: Of the block.
    """

    policy: NumpyPolicy
    revision: int
    sha256: str
    expires_s: float
    block: Block | None = None
    slot: int = 0

    @property
    def place(self) -> tuple[Block, int]:
        """Where it lies in the bank."""
        assert self.block is not None, "it is not in the bank"
        return self.block, self.slot

    def copy(self) -> Hot:
        """The same, to act with elsewhere than on the event loop, or later."""
        # What nobody writes to need not be copied, which takes longer than acting once.
        policy = self.policy if self.block is None or self.block.is_single else self.policy.copy()
        return Hot(policy, self.revision, self.sha256, self.expires_s)

    def move(self, name: str | None, block: Block, slot: int) -> None:
        """Lie there from now on; the arrays there are the policy's already."""
        block.names[slot] = name
        block.version += 1
        self.block, self.slot = block, slot
        arrays = {key: array[slot : slot + 1] for key, array in block.arrays.items()}
        self.policy = NumpyPolicy.view(block.shelf.architecture, arrays)
