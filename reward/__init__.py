"""Rewards: verifiers, reward models, a judge, and their composition. Does not import torch."""

from nanoalign.reward.base import Reward, RewardError, Sample
from nanoalign.reward.compose import PLAYED, ComposedReward, make_reward
from nanoalign.reward.table import REWARDS

__all__ = ["PLAYED", "REWARDS", "ComposedReward", "Reward", "RewardError", "Sample", "make_reward"]
