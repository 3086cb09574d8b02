"""Batch normalisation as the operators of this package see it, over one process or many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class BatchNorm(NamedTuple):
    """The tensors and settings of one batch normalisation over c channels.

    Attributes:
        weight, bias: (c,) affine parameters, or None for none.
        running_mean, running_var: (c,) read in evaluation, updated in place in training.
        training: normalise with the batch's statistics.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        sync: in training, take the statistics over all processes (each must hold a batch of the same size).
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    training: bool
    momentum: float = 0.1
    eps: float = 1e-5
    sync: bool = False


class _SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over all processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone()
        dist.all_reduce(total)
        return total


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, differentiable; `x` itself where there is one process."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return x
    total: Tensor = _SumOverProcesses.apply(x)
    return total / dist.get_world_size()


def _batch_moments(x: Tensor, sync: bool) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance per channel, and the number of values behind each."""
    mean = x.mean((0, 2, 3))
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if sync:
        mean = mean_over_processes(mean)
        count *= dist.get_world_size() if dist.is_initialized() else 1
    var = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
    return mean, mean_over_processes(var) if sync else var, count


def normalise(x: Float[Tensor, "n c h w"], norm: BatchNorm) -> Float[Tensor, "n c h w"]:
    """Normalise without the affine parameters; in training, update the running statistics in place.

    Follows torch: the batch's biased variance normalises, its unbiased one enters `running_var`.

    Returns: float32, or float64 where `x` is.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if norm.training:
        mean, var, count = _batch_moments(x, norm.sync)
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_((var * (count / max(count - 1, 1))).to(norm.running_var.dtype), norm.momentum)
    else:
        mean, var = norm.running_mean.to(x.dtype), norm.running_var.to(x.dtype)
    return (x - mean.view(1, -1, 1, 1)) * torch.rsqrt(var + norm.eps).view(1, -1, 1, 1)


def affine(x: Float[Tensor, "n c h w"], norm: BatchNorm) -> Float[Tensor, "n c h w"]:
    """Apply the affine parameters to an already normalised tensor."""
    if norm.weight is not None:
        x = x * norm.weight.view(1, -1, 1, 1)
    if norm.bias is not None:
        x = x + norm.bias.view(1, -1, 1, 1)
    return x
