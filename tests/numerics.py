"""Every tolerance of the tests against float64, derived from how the kernels round."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Relative error of one rounding to nearest."""

BLOCK = 256
"""Longest run of values that the kernels add up in float32 before they go on in float64."""

STEPS = 32
"""Roundings on the way from an input to an output besides sums: statistics, constants, a fused chain. Generous."""

SURROGATE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-12}
"""Relative error of the surrogate gradient's σ(1 − σ): full precision, or a sixteenth of bfloat16's."""

BAND = (BLOCK + STEPS) * UNIT[torch.float32]
"""Scores nearer to the threshold than this share of the terms that make them may round to the other side."""


def elementwise(magnitude: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """For values of terms up to `magnitude`, by batch statistics in float32, rounded once at last."""
    return (BLOCK + STEPS) * UNIT[torch.float32] * magnitude + UNIT[dtype] * exact.abs()


def total(mass: Tensor) -> Tensor:
    """For sums, in float32 within a block and in float64 beyond, of terms whose absolute values add up to `mass`."""
    return (BLOCK + STEPS) * UNIT[torch.float32] * mass


def within(actual: Tensor, exact: Tensor, bound: Tensor, what: str) -> None:
    """Assert |actual − exact| ≤ bound everywhere; a NaN fails."""
    error = (actual.double() - exact).abs()
    fits = error <= bound.expand_as(error)
    if not bool(fits.all()):
        excess = (error / bound.clamp_min(1e-300)).nan_to_num(float("inf"))
        where = torch.unravel_index(excess.argmax(), excess.shape)
        raise AssertionError(
            f"{what}: {int((~fits).sum())} of {fits.numel()} values off; worst at {tuple(int(i) for i in where)}: "
            f"expected {float(exact[where])}, got {float(actual[where])}, bound {float(bound.expand_as(error)[where])}"
        )
