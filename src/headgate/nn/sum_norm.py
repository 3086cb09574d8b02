"""The batch normalisation of a partial or a final sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headgate.ops.batch_norm import BatchNorm


class SumNorm(nn.Module):
    """Holds the parameters and running statistics of one normalisation; operators apply it.

    Parameter and buffer names are those of `torch.nn.BatchNorm2d`.

    Args:
        channels: c.
        affine: learn a weight and a bias (c,).
        momentum, eps: as in `torch.nn.BatchNorm2d`.

    Attributes:
        sync: take the batch's statistics over all processes in training.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.sync = False
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def state(self) -> BatchNorm:
        """The tensors and settings that operators take."""
        return BatchNorm(
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
            self.sync,
        )

    @torch.no_grad()
    def copy_from(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, *, share: float = 1.0) -> None:
        """Start from a dense network's normalisation.

        Args:
            share: of the sum's inputs that this norm's sum sees; its statistics are scaled accordingly.
        """
        if norm.running_mean is not None and norm.running_var is not None:
            self.running_mean.copy_(norm.running_mean * share)
            self.running_var.copy_(norm.running_var * share)
        if self.weight is not None and self.bias is not None and norm.weight is not None:
            self.weight.copy_(norm.weight)
            self.bias.copy_(norm.bias)
            self.weight.requires_grad_(norm.weight.requires_grad)
            self.bias.requires_grad_(norm.bias.requires_grad)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, affine={self.weight is not None}, momentum={self.momentum}, eps={self.eps}"
