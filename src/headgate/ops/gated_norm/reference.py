"""The specification of `gated_norm` in plain torch: differentiable, in any floating dtype."""

from __future__ import annotations

from torch import Tensor

from headgate.ops.batch_norm import BatchNorm, affine, normalise
from headgate.ops.decision import expand_groups, group_score
from headgate.ops.step import step


def gated_norm(
    final_sum: Tensor,
    partial_sum: Tensor,
    final: BatchNorm,
    partial: BatchNorm,
    threshold: Tensor,
    score_var: Tensor | None,
    residual: Tensor | None,
    *,
    slope: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """See `headgate.ops.gated_norm.gated_norm`. Computes in float32 at least and rounds the output once."""
    normalised_final = normalise(final_sum, final)
    normalised_partial = normalise(partial_sum, partial)
    if score_var is None:  # one decision per output activation
        margin = normalised_partial - threshold.view(1, -1, 1, 1)
        own = decision = step(margin, slope)
    else:  # one per pixel and output group
        score = group_score(
            normalised_partial,
            len(threshold),
            score_var,
            training=partial.training,
            momentum=partial.momentum,
            sync=partial.sync,
        )
        own = step(score - threshold.view(1, -1, 1, 1), slope)
        decision = expand_groups(own, final_sum.shape[1])
    output = decision * affine(normalised_final, final) + (1 - decision) * affine(normalised_partial, partial)
    if residual is not None:
        output = output + residual
    if relu:
        output = output.relu()
    return output.to(final_sum.dtype), own.sum((2, 3))
