"""Meta-learners: one file each, a frozen config and a final class."""

from __future__ import annotations

from models.learners.maml import MAML, MAMLConfig

LEARNERS = {"maml": MAML}
"""Learner classes by the ``name`` in their config."""

LearnerConfig = MAMLConfig
"""Any learner's config, told apart by ``name``."""

__all__ = ["LEARNERS", "MAML", "LearnerConfig", "MAMLConfig"]
