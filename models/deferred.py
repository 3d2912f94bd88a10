"""Work that a checkpoint's recomputation leaves out, for functions whose backward pass reads their inputs alone.

torch stops a recomputation once everything that the backward pass reads has been saved again. A function of our own
saves after its forward pass, so it comes in two: the first saves and returns placeholders, the second does the work.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def placeholder(like: Tensor, *shape: int) -> Tensor:
    """A tensor of this shape without memory, of ``like``'s kind, in place of a result not yet computed."""
    return like.new_empty(()).expand(shape)


def materialize(compute: Callable[[], Any], *deferred: Tensor) -> Any:
    """What ``compute`` returns, a tensor for each placeholder; their gradients are passed on to the placeholders."""
    return _Materialized.apply(compute, *deferred)


class _Materialized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Any], *deferred: Tensor) -> Any:
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grads
