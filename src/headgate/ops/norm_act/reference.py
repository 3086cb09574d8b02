"""The specification of `norm_act` in plain torch."""

from __future__ import annotations

from torch import Tensor

from headgate.ops.batch_norm import BatchNorm, affine, normalise


def norm_act(x: Tensor, norm: BatchNorm, residual: Tensor | None, *, relu: bool) -> Tensor:
    """See `headgate.ops.norm_act.norm_act`."""
    output = affine(normalise(x, norm), norm)
    if residual is not None:
        output = output + residual
    if relu:
        output = output.relu()
    return output.to(x.dtype)
