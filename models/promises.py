"""Work that a checkpoint's recomputation leaves out, for functions whose backward pass reads their inputs alone.

torch stops a recomputation once everything that the backward pass reads has been saved again. A function of our own
saves after its forward pass, so it comes in two: the first saves and returns promises, the second does the work.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def promise(like: Tensor, *shape: int) -> Tensor:
    """A tensor of this shape without memory, of ``like``'s kind, which stands for a result not yet computed."""
    return like.new_empty(()).expand(shape)


def fulfil(compute: Callable[[], Any], *promised: Tensor) -> Any:
    """What ``compute`` returns, a tensor for each promise; their gradients are handed on to the promises."""
    return _Fulfilled.apply(compute, *promised)


class _Fulfilled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Any], *promised: Tensor) -> Any:
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grads
