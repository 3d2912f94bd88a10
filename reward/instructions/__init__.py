"""Instructions that a program can check (IFEval's 25 types), and prompts augmented with them."""

from nanoalign.reward.instructions.augment import augment
from nanoalign.reward.instructions.checkers import CHECKERS, follows
from nanoalign.reward.instructions.score import score_instructions

__all__ = ["CHECKERS", "augment", "follows", "score_instructions"]
