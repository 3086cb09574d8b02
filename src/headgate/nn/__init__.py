"""Gated convolutions, their gates, and what reaches all gates of a model; binary convolutions."""

from headgate.nn.binary import BinaryConv2d
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
    "BinaryConv2d",
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
