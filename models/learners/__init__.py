"""Meta-learners: one file each, a frozen config and a final class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.learners.anil import ANIL, ANILConfig
from models.learners.base import Learner
from models.learners.cavia import CAVIA, CAVIAConfig
from models.learners.dice import DiCE, DiCEConfig
from models.learners.emaml import EMAML, EMAMLConfig
from models.learners.maml import MAML, MAMLConfig
from models.learners.meta_sgd import MetaSGD, MetaSGDConfig
from models.learners.multitask import Multitask, MultitaskConfig
from models.learners.reptile import Reptile, ReptileConfig
from models.policy import Policy

LearnerConfig = (
    MAMLConfig | EMAMLConfig | DiCEConfig | ReptileConfig | ANILConfig | MetaSGDConfig | CAVIAConfig | MultitaskConfig
)
"""Any learner's config, told apart by ``name``."""

CONFIGS: dict[str, type[LearnerConfig]] = {
    config.name: config
    for config in (
        MAMLConfig,
        EMAMLConfig,
        DiCEConfig,
        ReptileConfig,
        ANILConfig,
        MetaSGDConfig,
        CAVIAConfig,
        MultitaskConfig,
    )
}
"""Config classes by the ``name`` in them."""

LEARNERS: dict[str, Callable[[Any, Policy], Learner[Any]]] = {
    "maml": MAML,
    "e-maml": EMAML,
    "dice": DiCE,
    "reptile": Reptile,
    "anil": ANIL,
    "meta-sgd": MetaSGD,
    "cavia": CAVIA,
    "multitask": Multitask,
}
"""Learner classes by the ``name`` in their config."""

__all__ = ["CONFIGS", "LEARNERS", "MAML", "Learner", "LearnerConfig", "MAMLConfig"]
