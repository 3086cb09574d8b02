"""The Heaviside step with a usable gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, margin: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.slope = slope  # type: ignore[attr-defined]
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (margin,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope: float = ctx.slope  # type: ignore[attr-defined]
        sigmoid = torch.sigmoid(slope * margin)
        return grad_outputs[0] * slope * sigmoid * (1 - sigmoid), None


def step(margin: Float[Tensor, "*shape"], slope: float) -> Float[Tensor, "*shape"]:
    """Heaviside step θ(margin) whose backward is the derivative of a sigmoid.

    Forward is exact: 1 where `margin > 0`, else 0. Backward multiplies by slope · σ(slope · margin) · (1 − σ(…)),
    which peaks at slope / 4 where the margin is 0.

    Args:
        margin: decision statistic minus threshold, in standard deviations (dimensionless).
        slope: ε of the method.
    Returns: 0 or 1 in `margin`'s dtype and shape.
    Source: Hua et al., NeurIPS 2019, appendix A.1 (gradient at most ε / 4).
    """
    if not margin.requires_grad:
        return (margin > 0).to(margin.dtype)
    return _Step.apply(margin, slope)  # type: ignore[no-any-return]
