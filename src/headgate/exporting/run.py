"""The entry point."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from headgate.exporting.fuse import fuse
from headgate.exporting.lower import lower
from headgate.exporting.plan import write
from headgate.exporting.report import ExportReport, report
from headgate.exporting.trace_graph import trace_graph

__all__ = ["export"]


def export(model: nn.Module, path: str | os.PathLike[str], *, example_input: Tensor) -> ExportReport:
    """Write a model, gated or dense, to a plan file for the native engine.

    The file holds the model as it computes in evaluation mode, in float32, for images of one size and batches of any.
    Batch norms, residual sums and activations are folded into the convolutions before them, thresholds take their
    offset along, and gates that are held open or closed become plain convolutions. The same model gives the same
    bytes. The model is left as it was.

    Args:
        model: any network of convolutions that `torch.fx` can trace: one tensor in, one out.
        path: of the file; what is there already is replaced in one step.
        example_input: (n, c, h, w) images of the size to export for; their values and number do not matter.
    Returns: every operator, what was fused into it, its size and its work; `print` shows a table.
    Raises:
        ExportError: the plan format lacks an operator or a gate; the message names the layer and what to do.
        ModelError: the model cannot be traced, has no weights, or does not take `example_input`.
        DtypeError, ShapeError: `example_input` is not images.
        CheckpointError: the file cannot be written; what was there before is unchanged.
    """
    with torch.no_grad():
        plan = fuse(lower(trace_graph(model, example_input)))
        size = write(plan, path)
    return report(plan, model=type(model).__name__, path=os.fspath(path), size=size)
