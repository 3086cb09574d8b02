"""The entry point."""

from __future__ import annotations

import os
from typing import get_args

import torch
from torch import Tensor, nn

from headgate.errors import ConfigError
from headgate.exporting.fuse import fuse
from headgate.exporting.int8 import Calibration, calibrate
from headgate.exporting.lower import lower
from headgate.exporting.plan import write
from headgate.exporting.precision import Precision, with_bfloat16, with_int8
from headgate.exporting.report import ExportReport, report
from headgate.exporting.trace_graph import trace_graph

__all__ = ["export"]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_input: Tensor,
    precision: Precision = "float32",
    calibration: Calibration | None = None,
) -> ExportReport:
    """Write a model, gated or dense, to a plan file for the native engine.

    The file holds the model as it computes in evaluation mode, in float32, for images of one size and batches of any.
    Batch norms, residual sums and activations are folded into the convolutions before them, thresholds take their
    offset along, and gates that are held open or closed become plain convolutions. The same model gives the same
    bytes. The model is left as it was.

    Args:
        model: any network of convolutions that `torch.fx` can trace: one tensor in, one out.
        path: of the file; what is there already is replaced in one step.
        example_input: (n, c, h, w) images of the size to export for; their values and number do not matter.
        precision: "int8" computes convolutions in 8-bit integers, "bfloat16" from inputs and weights rounded to it,
            with sums in float32: all but the first, the last, and what the report names. Weights are rounded when the
            plan is loaded, to integers per output channel.
        calibration: for "int8": images like those that the engine will see, some hundreds; or batches of them, such as
            a data loader gives. The range of every convolution's input on them is what its 8 bits span.
    Returns: every operator, what was fused into it, its size and its work; `print` shows a table.
    Raises:
        ExportError: the plan format lacks an operator or a gate; the message names the layer and what to do.
        ModelError: the model cannot be traced, has no weights, or does not take `example_input`.
        ConfigError: `precision` is unknown, or `calibration` is missing, empty, or given for another precision.
        DtypeError, ShapeError: `example_input` or `calibration` is not images, or their sizes differ.
        DataError: `calibration` is not finite.
        CheckpointError: the file cannot be written; what was there before is unchanged.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if (calibration is not None) != (precision == "int8"):
        remedy = "give images that the ranges are taken from" if precision == "int8" else "leave it out"
        given = "none" if calibration is None else "some"
        raise ConfigError(
            f"calibration must be given for int8 and for nothing else, got {given} for {precision}; {remedy}"
        )
    with torch.no_grad():
        traced = trace_graph(model, example_input)
        plan = fuse(lower(traced))
        if calibration is not None:
            plan = with_int8(plan, calibrate(model, traced, calibration, example_input))
        if precision == "bfloat16":
            plan = with_bfloat16(plan)
        size = write(plan, path)
    return report(plan, model=type(model).__name__, path=os.fspath(path), size=size)
