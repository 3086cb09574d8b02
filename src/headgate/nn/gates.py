"""The gates: what decides whether the conditional path runs. One interface, five granularities.

A gate turns a statistic into a score, compares it with a learnable threshold, and steps. Its threshold is in standard
deviations of the score, so that one target T means about the same density in every layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.nn.config import GateConfig
from headgate.ops.batch_norm import BatchNorm, normalise
from headgate.ops.decision import group_score, unit_variance
from headgate.ops.step import step

MEDIAN_ABS_NORMAL = 0.6745
"""Median of |Z| for a standard normal Z: centres the two-sided score so that Δ = 0 opens half, as one-sided."""
MEAN_ABS_NORMAL = 0.7979
"""Mean of |Z|: centres two-sided scores that are averaged."""


class Overhead(NamedTuple):
    """Arithmetic that a gate adds per image, beside the convolution's own (method.md, the four gates)."""

    additions: int
    multiplications: int


class Gate(nn.Module, ABC):
    """Base of all gates.

    Attributes:
        decisions: number of decisions per image, or per pixel where `per_pixel`.
        per_pixel: a decision is for one pixel, not for a whole map.
        statistic: what `forward` takes: the normalised partial sum, or the convolution's input.
        threshold: (decisions,) Δ, learnable.
        offset: () added to every threshold: the run-time dial.
        slope: ε.
        forced: None, or "open"/"closed" whatever the score.
        sync: take the score's batch statistics over all processes in training.
    """

    per_pixel: ClassVar[bool]
    statistic: ClassVar[Literal["partial_sum", "input"]]
    threshold: nn.Parameter
    offset: Tensor

    def __init__(self, decisions: int, config: GateConfig) -> None:
        super().__init__()
        self.decisions = decisions
        self.slope = config.slope
        self.forced: Literal["open", "closed"] | None = None
        self.sync = False
        self.threshold = nn.Parameter(torch.full((decisions,), float(config.threshold)))
        self.register_buffer("offset", torch.zeros(()))

    @abstractmethod
    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """The score that is compared with the threshold; its maps are 1×1 unless `per_pixel`."""

    @abstractmethod
    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        """What deciding costs per image."""

    def effective_threshold(self) -> Float[Tensor, " d"]:
        """Threshold plus offset."""
        return self.threshold + self.offset

    def forward(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """1 where the conditional path runs, else 0, with the surrogate's gradient."""
        score = self.score(statistic)
        if self.forced is not None:
            return torch.full_like(score, float(self.forced == "open"))
        return step(score - self.effective_threshold().view(1, -1, 1, 1), self.slope)

    def extra_repr(self) -> str:
        return f"{self.decisions}, slope={self.slope}"


class ActivationGate(Gate):
    """CG-fine: one decision per output activation, from its own partial sum. Costs nothing but the comparison."""

    per_pixel = True
    statistic = "partial_sum"

    def __init__(self, channels: int, config: GateConfig, *, two_sided: bool = False) -> None:
        super().__init__(channels, config)
        self.two_sided = two_sided

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        # A saturating activation is insensitive on both tails: only sums near the centre are worth completing.
        return MEDIAN_ABS_NORMAL - statistic.abs() if self.two_sided else statistic

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        return Overhead(0, 0)


class _ScaledGate(Gate):
    """A gate whose score is an average that is scaled to unit variance by running statistics."""

    score_var: Tensor

    def __init__(self, decisions: int, averaged: int, config: GateConfig, momentum: float = 0.1) -> None:
        super().__init__(decisions, config)
        self.momentum = momentum
        self.register_buffer("score_var", torch.full((decisions,), 1.0 / averaged))


class GroupGate(_ScaledGate):
    """One decision per pixel and output group, from the mean of the group's partial sums."""

    per_pixel = True
    statistic = "partial_sum"

    def __init__(self, channels: int, groups: int, config: GateConfig, *, two_sided: bool = False) -> None:
        super().__init__(groups, channels // groups, config)
        self.channels = channels
        self.two_sided = two_sided

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n g h w"]:
        return group_score(
            MEAN_ABS_NORMAL - statistic.abs() if self.two_sided else statistic,
            self.decisions,
            self.score_var,
            training=self.training,
            momentum=self.momentum,
            sync=self.sync,
        )

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        return Overhead((c_out - self.decisions) * out_pixels, 0)


class ChannelGate(_ScaledGate):
    """CG-coarse: one decision per image and output channel, from the mean of its partial sums over the map.

    Averages the sums rather than the fine decisions of the paper's sentence: the same additions, and a score whose
    distribution a threshold can meet at any density.
    """

    per_pixel = False
    statistic = "partial_sum"

    def __init__(self, channels: int, config: GateConfig, *, two_sided: bool = False) -> None:
        super().__init__(channels, 16, config)
        self.two_sided = two_sided

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        centred = MEAN_ABS_NORMAL - statistic.abs() if self.two_sided else statistic
        mean = centred.mean((2, 3), keepdim=True)
        return unit_variance(mean, self.score_var, training=self.training, momentum=self.momentum, sync=self.sync)

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        return Overhead(c_out * out_pixels, 0)


class _InputGate(Gate):
    """A gate that decides from the ℓ1 norms of the input channels, standardised by running statistics."""

    per_pixel = False
    statistic = "input"
    score_mean: Tensor
    score_var: Tensor

    def __init__(self, decisions: int, config: GateConfig) -> None:
        super().__init__(decisions, config)
        self.register_buffer("score_mean", torch.zeros(decisions))
        self.register_buffer("score_var", torch.ones(decisions))

    def _standardise(self, score: Float[Tensor, "n d"]) -> Float[Tensor, "n d 1 1"]:
        norm = BatchNorm(None, None, self.score_mean, self.score_var, self.training, sync=self.sync)
        return normalise(score[:, :, None, None], norm)


class L1NormGate(_InputGate):
    """One decision per image and *input* channel, from its ℓ1 norm (mean of |x|): closed channels are not read."""

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        return self._standardise(statistic.abs().mean((2, 3)))

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        return Overhead(c_in * in_pixels, 0)


class FCGate(_InputGate):
    """One decision per image and output channel, from a fully connected layer on the ℓ1 norms of the inputs.

    A closed output channel is zero, so the next layer need not read it either.
    """

    def __init__(self, c_in: int, c_out: int, config: GateConfig) -> None:
        super().__init__(c_out, config)
        self.fc = nn.Linear(c_in, c_out, bias=False)

    def score(self, statistic: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d 1 1"]:
        return self._standardise(self.fc(statistic.abs().mean((2, 3))))

    def overhead(self, c_in: int, c_out: int, in_pixels: int, out_pixels: int) -> Overhead:
        return Overhead(c_in * in_pixels, c_in * c_out)


def make_gate(config: GateConfig, *, c_in: int, c_out: int, output_groups: int, two_sided: bool = False) -> Gate:
    """The gate that `config.granularity` names, for a convolution of these channels."""
    match config.granularity:
        case "activation":
            return ActivationGate(c_out, config, two_sided=two_sided)
        case "group":
            return GroupGate(c_out, output_groups, config, two_sided=two_sided)
        case "channel":
            return ChannelGate(c_out, config, two_sided=two_sided)
        case "l1norm":
            return L1NormGate(c_in, config)
        case "fc":
            return FCGate(c_in, c_out, config)
