"""The sign with a usable gradient: what makes a number one bit."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs().le_(1))  # 0 or 1 in x's dtype: on a CPU a product with booleans is slow
        return _sign(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (passes,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_outputs[0] * passes  # type: ignore[no-any-return]


def _sign(x: Tensor) -> Tensor:
    """Several times faster on a CPU than a selection by comparisons."""
    bounded = x.clamp(-1, 1)  # infinities would not survive the product; NaN, which must not get a sign, does
    one = bounded.mul(0).add_(1)
    return torch.copysign(one, bounded.add_(0.0))  # −0 + 0 = +0


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
