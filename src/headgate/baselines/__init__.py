"""The pruning methods that channel gating is compared with."""

from headgate.baselines.conversion import Conversion, ConvertedLayer
from headgate.baselines.perforation import PerforatedConv2d, perforate_, perforated_layers
from headgate.baselines.perforation_rates import choose_rates

__all__ = [
    "Conversion",
    "ConvertedLayer",
    "PerforatedConv2d",
    "choose_rates",
    "perforate_",
    "perforated_layers",
]
