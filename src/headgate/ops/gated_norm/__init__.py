"""Normalise both sums, decide, select, add the residual, activate: everything behind a gated convolution, fused."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from headgate.errors import DtypeError, ShapeError
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.gated_norm import native, reference
from headgate.ops.native import serves

__all__ = ["gated_norm"]


def gated_norm(
    final_sum: Float[Tensor, "n _ h w"],
    partial_sum: Float[Tensor, "n c h w"] | None,
    final: BatchNorm,
    partial: BatchNorm,
    threshold: Float[Tensor, " d"],
    score_var: Float[Tensor, " d"] | None,
    residual: Float[Tensor, "n c h w"] | None,
    *,
    slope: float,
    relu: bool,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n d"]]:
    """output = act( decision · BN_F(F) + (1 − decision) · BN_P(P) + residual ), decision = score > threshold.

    The score is N(P), the normalised partial sum, for activation granularity (d = c), and the group's mean of N(P)
    scaled to unit variance for group granularity (d = number of output groups; `score_var` given).

    Args:
        final_sum: F, c channels; or, with `partial_sum` None, 2c channels [F | P] of a concatenated convolution.
        partial_sum: P.
        final, partial: BN_F and BN_P; their running statistics are updated in place in training.
        threshold: Δ, in standard deviations of the score.
        score_var: running variance of the groups' means, updated in place in training; None for activation granularity.
        slope: ε of the surrogate gradient.
        relu: apply ReLU last, after the residual.
    Returns:
        output in the sums' dtype, and the number of open decisions per image and channel (or group) in float32.
        Both are differentiable: a gradient of the counts reaches P and the thresholds through the surrogate.
    Raises: ShapeError, DtypeError.
    Source: Hua et al., NeurIPS 2019; docs/method.md.
    """
    channels = final_sum.shape[1] if partial_sum is not None else final_sum.shape[1] // 2
    if channels != len(final.running_mean):
        raise ShapeError(f"final_sum must have the {len(final.running_mean)} channels of its norm, got {channels}")
    if channels % len(threshold):
        raise ShapeError(f"threshold's length must divide the {channels} channels, got {len(threshold)}")
    if score_var is None and len(threshold) != channels:
        raise ShapeError(f"without score_var, threshold must have {channels} values, got {len(threshold)}")
    if partial_sum is not None and partial_sum.shape != final_sum.shape:
        raise ShapeError(f"partial_sum must have final_sum's shape {final_sum.shape}, got {partial_sum.shape}")
    if residual is not None and residual.shape != (final_sum.shape[0], channels, *final_sum.shape[2:]):
        raise ShapeError(f"residual must have {channels} channels and final_sum's size, got {residual.shape}")
    if not final_sum.is_floating_point():
        raise DtypeError(f"final_sum must be a floating-point tensor, got {final_sum.dtype}")
    maps = (final_sum, partial_sum, residual)
    if slope > 0 and serves(maps, channels, (final, partial), (threshold, score_var)):
        return native.gated_norm(
            final_sum, partial_sum, final, partial, threshold, score_var, residual, slope=slope, relu=relu
        )
    if partial_sum is None:
        final_sum, partial_sum = final_sum.chunk(2, dim=1)
    return reference.gated_norm(
        final_sum, partial_sum, final, partial, threshold, score_var, residual, slope=slope, relu=relu
    )
