"""The pruning methods that channel gating is compared with."""

from headgate.baselines.conversion import Conversion, ConvertedLayer
from headgate.baselines.fbs import FBSConv2d, fbs_, fbs_layers, observe_saliencies, saliency_loss, set_density_
from headgate.baselines.magnitude import MagnitudePruner, PruningSchedule, TheoreticalMacs, theoretical_macs
from headgate.baselines.perforation import PerforatedConv2d, perforate_, perforated_layers
from headgate.baselines.perforation_rates import choose_rates

__all__ = [
    "Conversion",
    "ConvertedLayer",
    "FBSConv2d",
    "MagnitudePruner",
    "PerforatedConv2d",
    "PruningSchedule",
    "TheoreticalMacs",
    "choose_rates",
    "fbs_",
    "fbs_layers",
    "observe_saliencies",
    "perforate_",
    "perforated_layers",
    "saliency_loss",
    "set_density_",
    "theoretical_macs",
]
