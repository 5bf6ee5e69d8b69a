"""Train on from an initialisation with the algorithms that people use anyway: one file for each."""

from models.finetune.dqn import DQNConfig
from models.finetune.loop import Progress, finetune
from models.finetune.methods import CONFIGS, METHODS, MethodConfig, require_fit
from models.finetune.ppo import PPOConfig
from models.finetune.sac import SACConfig

__all__ = [
    "CONFIGS",
    "METHODS",
    "DQNConfig",
    "MethodConfig",
    "PPOConfig",
    "Progress",
    "SACConfig",
    "finetune",
    "require_fit",
]
