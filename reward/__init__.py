"""Rewards: verifiers, reward models, a judge, and their composition. Does not import torch."""

from nanoalign.reward.base import Reward, RewardError, Sample
from nanoalign.reward.compose import COMPONENTS, KINDS, PLAYED, ComposedReward, make_reward

__all__ = ["COMPONENTS", "KINDS", "PLAYED", "ComposedReward", "Reward", "RewardError", "Sample", "make_reward"]
