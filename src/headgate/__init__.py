"""Channel gating for convolutional networks: gate any CNN, train it to a budget, count what it saves.

The public API is what this module re-exports. Everything heavier than torch is imported where it is used.
"""

from __future__ import annotations

from headgate.checkpoint import list_pretrained, load, pretrained, save
from headgate.convert import GateReport, gate_
from headgate.counting import BufferModel, Counts, count
from headgate.errors import HeadgateError
from headgate.fusion import fuse
from headgate.nn import GateConfig, GatedConv2d, force_gates, shift_thresholds_, threshold_loss

__version__ = "0.1.0"

__all__ = [
    "BufferModel",
    "Counts",
    "GateConfig",
    "GateReport",
    "GatedConv2d",
    "HeadgateError",
    "count",
    "force_gates",
    "fuse",
    "gate_",
    "list_pretrained",
    "load",
    "pretrained",
    "save",
    "shift_thresholds_",
    "threshold_loss",
]
