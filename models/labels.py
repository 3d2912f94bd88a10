"""Labels of tokens, and which token each place is to predict. B rows, T tokens."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a token that does not count, as transformers and torch have it."""


def next_labels(labels_BT: Tensor) -> Tensor:
    """The label of each place's next token (B, T); after the last there is none that counts."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
