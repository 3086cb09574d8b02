"""The sign with a usable gradient: what makes a number one bit."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= 1)
        return _sign(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (passes,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_outputs[0] * passes  # type: ignore[no-any-return]


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, torch.where(x >= 0, 1.0, x))  # NaN is neither, and stays: it must not look trained


def sign(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """−1 below 0, else +1, with the straight-through estimator as its backward.

    There is no third value: sign(0) = +1. NaN stays NaN. Backward passes the gradient on where |x| ≤ 1 and stops it
    elsewhere, as if forward had been a hard tanh.

    Returns: −1 or +1 in `x`'s dtype and shape.
    Source: Hubara et al., "Binarized neural networks", NeurIPS 2016 ("Propagating gradients through
        discretization").
    """
    if not x.requires_grad:
        return _sign(x)
    return _Sign.apply(x)  # type: ignore[no-any-return]
