"""Gated convolutions, their gates, and what reaches all gates of a model."""

from headgate.nn.config import GateConfig
from headgate.nn.control import (
    force_gates,
    gated_layers,
    observe,
    set_channel_bound_,
    shift_thresholds_,
    threshold_loss,
)
from headgate.nn.gated_conv import GatedConv2d, Observation

__all__ = [
    "GateConfig",
    "GatedConv2d",
    "Observation",
    "force_gates",
    "gated_layers",
    "observe",
    "set_channel_bound_",
    "shift_thresholds_",
    "threshold_loss",
]
