"""How to gate a convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

from headgate.errors import ConfigError

Granularity = Literal["activation", "channel", "group", "l1norm", "fc"]
NormMode = Literal["separate", "shared"]


def require_finite(name: str, value: object) -> None:
    """Raises ConfigError: an option that must be a finite number is something else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Settings of gated convolutions, the same for every layer that `gate_` gates.

    Attributes:
        groups: G = 1/η. The base path sees 1/G of a layer's input channels.
        granularity: what one decision is for. "activation": one output activation (CG-fine). "group": one pixel of
            one of the G output groups. "channel": one output channel of an image (CG-coarse). "l1norm" and "fc" are
            the comparison gates that decide from the input: per input channel, per output channel.
        grouped: output group i has input group i as its base; False: the first 1/G of the inputs are everyone's base.
        shuffle: take base groups across the previous layer's groups (a channel shuffle of its output).
        norm: "separate": partial and final sums have a normalisation each (the paper). "shared": one normalisation of
            the mix (the authors' public code).
        threshold: initial Δ, in standard deviations of the normalised partial sum.
        slope: ε of the surrogate gradient.
        channel_bound: τ. An output channel with at most this fraction of open decisions in an image skips its
            conditional path altogether. 0 switches it off.
        include: names or patterns (fnmatch) of convolutions to gate though the rules would leave them dense.
        exclude: names or patterns of convolutions to leave dense. Wins over `include`.
    Raises: ConfigError.
    """

    groups: int = 8
    granularity: Granularity = "activation"
    grouped: bool = True
    shuffle: bool = False
    norm: NormMode = "separate"
    threshold: float = 0.0
    slope: float = 2.0
    channel_bound: float = 0.0
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise ConfigError(f"groups must be an integer ≥ 1, got {self.groups!r}")
        for name, choices in (("granularity", get_args(Granularity)), ("norm", get_args(NormMode))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("threshold", "slope", "channel_bound"):
            require_finite(name, getattr(self, name))
        if not self.slope > 0:
            raise ConfigError(f"slope must be > 0, got {self.slope!r}")
        if not 0 <= self.channel_bound <= 1:
            raise ConfigError(f"channel_bound must be a fraction in [0, 1], got {self.channel_bound!r}")
        if self.shuffle and not self.grouped:
            raise ConfigError("shuffle exchanges channels between groups: it needs grouped=True, got grouped=False")
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"{name} must be a tuple of names or patterns, got the string {value!r}")
            object.__setattr__(self, name, tuple(value))
