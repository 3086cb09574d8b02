"""The pruning methods that channel gating is compared with."""

from headgate.baselines.branches import without_layers
from headgate.baselines.conversion import Conversion, ConvertedLayer
from headgate.baselines.decorrelation import Decorrelation, DecorrelationConfig, orthogonal_
from headgate.baselines.fbs import FBSConv2d, fbs_, fbs_layers, observe_saliencies, saliency_loss, set_density_
from headgate.baselines.magnitude import MagnitudePruner, PruningSchedule, TheoreticalMacs, theoretical_macs
from headgate.baselines.methods import Method, MethodName, PruningConfig, make_method
from headgate.baselines.perforation import PerforatedConv2d, perforate_, perforated_layers
from headgate.baselines.perforation_rates import choose_rates
from headgate.baselines.removal import Removal, remove
from headgate.baselines.ssl import GroupLasso, SSLConfig, ZeroMask, shape_macs
from headgate.baselines.structure import apply_pruned_structure_, pruned_structure
from headgate.baselines.torch_pruning import GroupSparsity, prune

__all__ = [
    "Conversion",
    "ConvertedLayer",
    "Decorrelation",
    "DecorrelationConfig",
    "FBSConv2d",
    "GroupLasso",
    "GroupSparsity",
    "MagnitudePruner",
    "Method",
    "MethodName",
    "PerforatedConv2d",
    "PruningConfig",
    "PruningSchedule",
    "Removal",
    "SSLConfig",
    "TheoreticalMacs",
    "ZeroMask",
    "apply_pruned_structure_",
    "choose_rates",
    "fbs_",
    "fbs_layers",
    "make_method",
    "observe_saliencies",
    "orthogonal_",
    "perforate_",
    "perforated_layers",
    "prune",
    "pruned_structure",
    "remove",
    "saliency_loss",
    "set_density_",
    "shape_macs",
    "theoretical_macs",
    "without_layers",
]
