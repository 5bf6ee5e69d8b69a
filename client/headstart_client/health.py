"""Whether a service can be worked with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """Whether a service can be worked with.

    Attributes:
        live: It answers.
        ready: It can reach what it needs, its database above all.
    """

    live: bool
    ready: bool
