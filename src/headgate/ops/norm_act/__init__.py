"""Batch normalisation, residual and ReLU in one pass: the dense counterpart of `gated_norm`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from headgate.errors import ShapeError
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.native import serves
from headgate.ops.norm_act import native, reference

__all__ = ["norm_act"]


def norm_act(
    x: Float[Tensor, "n c h w"], norm: BatchNorm, residual: Float[Tensor, "n c h w"] | None, *, relu: bool
) -> Float[Tensor, "n c h w"]:
    """act( BN(x) + residual ), in `x`'s dtype; updates the running statistics in place in training.

    Raises: ShapeError: `x`'s channels differ from the norm's.
    """
    if x.shape[1] != len(norm.running_mean):
        raise ShapeError(f"x must have the {len(norm.running_mean)} channels of its norm, got {x.shape[1]}")
    if residual is not None and residual.shape != x.shape:
        raise ShapeError(f"residual must have x's shape {x.shape}, got {residual.shape}")
    if serves((x, residual), x.shape[1], (norm,)):
        return native.norm_act(x, norm, residual, relu=relu)
    return reference.norm_act(x, norm, residual, relu=relu)
