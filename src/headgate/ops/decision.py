"""From a normalised partial sum to decisions: the arithmetic that gates and fused operators share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headgate.ops.batch_norm import mean_over_processes

SCORE_EPS = 1e-5  # added to the running variance of a group's score


@torch.library.custom_op("headgate::snapshot", mutates_args=(), schema="(Tensor running) -> Tensor")
def _snapshot(running: Tensor) -> Tensor:
    """A copy that the compiler cannot look through.

    Without it a compiled backward reads the running variance again after it was updated (pytorch/pytorch#197039).
    """
    return running.clone()


@_snapshot.register_fake
def _(running: Tensor) -> Tensor:
    return torch.empty_like(running)


def unit_variance(
    score: Float[Tensor, "n d h w"],
    running_var: Float[Tensor, " d"],
    *,
    training: bool,
    momentum: float,
    sync: bool = False,
) -> Float[Tensor, "n d h w"]:
    """Scale a zero-mean score to unit variance, so that a threshold means the same density whatever was averaged.

    Scales by the running variance also in training, and lets no gradient into it: one pass over the data is enough.

    Args:
        running_var: updated in training *after* it was used.
    """
    before = _snapshot(running_var) if training and torch.compiler.is_compiling() else running_var
    scale = torch.rsqrt(before.to(score.dtype) + SCORE_EPS)
    if training:
        with torch.no_grad():
            batch_var = score.square().mean((0, 2, 3))
            if sync:
                batch_var = mean_over_processes(batch_var)
            running_var.lerp_(batch_var.to(running_var.dtype), momentum)
    return score * scale.view(1, -1, 1, 1)


def group_score(
    partial: Float[Tensor, "n c h w"],
    groups: int,
    score_var: Float[Tensor, " g"],
    *,
    training: bool,
    momentum: float,
    sync: bool = False,
) -> Float[Tensor, "n g h w"]:
    """Mean of each output group's normalised partial sums, scaled to unit variance.

    Without the scaling the mean of k independent sums has standard deviation 1/√k, and one target for the thresholds
    would leave layers with large groups nearly closed.
    """
    n, c, h, w = partial.shape
    mean = partial.reshape(n, groups, c // groups, h, w).mean(2)
    return unit_variance(mean, score_var, training=training, momentum=momentum, sync=sync)


def expand_groups(decision: Float[Tensor, "n g h w"], channels: int) -> Float[Tensor, "n c h w"]:
    """Give every channel of an output group its group's decision."""
    return decision.repeat_interleave(channels // decision.shape[1], dim=1)
