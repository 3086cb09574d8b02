"""The same network with uniformly fewer channels: what a user would train instead of gating."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn

from headgate.errors import ModelError

__all__ = ["narrowest", "thinner"]


def narrowest(model: nn.Module) -> int:
    """Output channels of the model's narrowest convolution."""
    return min(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def thinner(model: nn.Module, share: float, example_input: Tensor) -> nn.Module:
    """A copy with `share` of the channels of every layer but input and output, and fresh weights.

    Args:
        model: dense, of convolutions, batch norms and linear layers whose inputs follow from the layers before.
        share: in (0, 1].
        example_input: (n, c, h, w), to find out the sizes of inputs.
    Raises: ModelError: the thinner layers do not fit one another.
    """
    model = copy.deepcopy(model).train()
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    last = next((m for _, m in reversed(named) if isinstance(m, nn.Linear)), named[-1][1])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "Lazy modules", UserWarning)
        try:
            for name, module in list(model.named_modules()):
                new = _lazy(module, share, keep=module is last)
                if new is not None:
                    parent, _, child = name.rpartition(".")
                    setattr(model.get_submodule(parent), child, new)
            model(example_input)  # makes the weights
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{type(model).__name__} cannot be made {share:.2f} as wide: {error}") from error
    return model.eval()


def _lazy(module: nn.Module, share: float, *, keep: bool) -> nn.Module | None:
    """The thinner layer that takes its number of inputs from what it is given; None for layers without channels."""

    def scaled(channels: int) -> int:
        return max(1, math.floor(channels * share + 0.5))

    match module:
        case nn.Conv2d():
            depthwise = 1 < module.groups == module.in_channels
            return nn.LazyConv2d(
                module.out_channels if keep else scaled(module.out_channels),
                module.kernel_size,  # type: ignore[arg-type]  # pairs, as nn.Conv2d keeps them
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                scaled(module.groups) if depthwise else module.groups,
                bias=module.bias is not None,
            )
        case nn.BatchNorm2d():
            return nn.LazyBatchNorm2d(module.eps, module.momentum, module.affine)
        case nn.Linear():
            return nn.LazyLinear(
                module.out_features if keep else scaled(module.out_features), bias=module.bias is not None
            )
    return None
