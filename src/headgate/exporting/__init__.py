"""From a torch model, gated or dense, to a plan file for the native engine: docs/design/0002-plan-and-engine.md.

Four steps, a module each: `trace_graph` (model → graph with shapes), `lower` (graph → operators, one for one; `gated`
and `windows` know the layers), `fuse` (norms, residual sums and activations into the operator before them), `plan`
(operators → file).
"""

from headgate.exporting.report import ExportReport, OperatorReport
from headgate.exporting.run import export

__all__ = ["ExportReport", "OperatorReport", "export"]
