"""Group lasso with a penalty on correlated filters and channels, from an orthogonal start.

Source: Zhu, Zhou, Li, "Improving deep neural network sparsity through decorrelation regularization", IJCAI 2018.
Networks under group lasso keep filters that say the same thing; pushed apart, fewer of them are needed.

    orthogonal_(model)                                                # before training
    decorrelation = Decorrelation(model, DecorrelationConfig())
    lasso = GroupLasso(model, SSLConfig(filters=1e-3, channels=1e-3), example_input)
    loss = task_loss + lasso.penalty() + decorrelation.penalty()      # in every training step
    lasso.zero_()                                                     # at the end, then `remove`

Correlation here is the cosine of two filters as vectors, not Pearson's coefficient: it is zero for orthogonal filters,
which is what training starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.baselines.channels import weight_by_group
from headgate.errors import ConfigError, ModelError
from headgate.nn.config import require_finite

__all__ = ["Decorrelation", "DecorrelationConfig", "correlation_penalty", "orthogonal_"]


@dataclass(frozen=True, kw_only=True)
class DecorrelationConfig:
    """How strongly correlation is regularised.

    Attributes:
        weight: λ of the penalty.
        channels: penalise correlated input channels of a layer too, not its filters alone.
        bound: filters and channels whose mean absolute weight is at most this are left out, anew in every step: group
            lasso is about to remove them, and their direction is noise.
    """

    weight: float = 5.0
    channels: bool = True
    bound: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("weight", "bound"):
            value = getattr(self, name)
            require_finite(name, value)
            if value < 0:
                raise ConfigError(f"{name} must be ≥ 0, got {value}")


def correlation_penalty(rows: Float[Tensor, "rows weights"], bound: float) -> Float[Tensor, ""]:
    """‖C − I‖ / n for the cosines C between the n rows whose mean absolute value is above the bound; 0 for n < 2.

    The norm is Frobenius's: 0 for orthogonal rows, √(n² − n) / n for equal ones.
    """
    active = rows[rows.detach().abs().mean(1) > bound]
    if len(active) < 2:
        return 0.0 * active.sum()
    unit = torch.nn.functional.normalize(active, dim=1, eps=torch.finfo(rows.dtype).tiny)
    cosines = unit @ unit.T
    off_diagonal = cosines - torch.diag(cosines.diagonal())
    penalty: Tensor = torch.linalg.vector_norm(off_diagonal) / len(active)
    return penalty


class Decorrelation:
    """The penalty on a model's convolutions. Depthwise ones are left out: their filters read different channels.

    Args:   model: its parameters are read in place.
    Raises: ModelError: no convolution that is not depthwise.
    """

    def __init__(self, model: nn.Module, config: DecorrelationConfig) -> None:
        self.config = config
        self.convs = list(_convs(model))

    def penalty(self) -> Float[Tensor, ""]:
        """λ · Σ over layers of the filters' correlation, and of the input channels'; to add to the loss.

        In a convolution with several groups, each is a layer: its filters read other channels than the others'.
        """
        terms = []
        for conv in self.convs:
            for group in weight_by_group(conv):
                terms.append(correlation_penalty(group.flatten(1), self.config.bound))
                if self.config.channels:
                    terms.append(correlation_penalty(group.transpose(0, 1).flatten(1), self.config.bound))
        return self.config.weight * torch.stack(terms).sum()


@torch.no_grad()
def orthogonal_(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of convolutions with orthogonal filters of the size that He's initialisation gives on average.

    Where a layer has more filters than a filter has weights, they cannot all be orthogonal: then their columns are.
    Depthwise convolutions are left as they are.

    Source: the paper, by singular value decomposition; Saxe et al., "Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks", ICLR 2014, by QR, which gives the same distribution.
    Raises: ModelError: no convolution that is not depthwise.
    """
    for conv in _convs(model):
        for group in weight_by_group(conv):
            filters = group.flatten(1)  # a view: what is written is written to the layer
            outputs, weights = filters.shape
            fan_out = outputs * group[0, 0].numel()
            drawn = torch.empty(outputs, weights, dtype=torch.float64)
            nn.init.orthogonal_(drawn, generator=generator)
            size = (2 * weights / fan_out) ** 0.5 * max(1.0, outputs / weights) ** 0.5  # of one filter
            filters.copy_(size * drawn)


def _convs(model: nn.Module) -> Iterator[nn.Conv2d]:
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    found = [conv for conv in found if conv.groups < conv.in_channels or conv.groups == 1]
    if not found:
        raise ModelError(f"model must have a Conv2d that is not depthwise, got {type(model).__name__} with none")
    yield from found
