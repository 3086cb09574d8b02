"""The pruning methods that channel gating is compared with."""

from headgate.baselines.decorrelation import Decorrelation, DecorrelationConfig, orthogonal_
from headgate.baselines.removal import Removal, remove
from headgate.baselines.ssl import GroupLasso, SSLConfig, ZeroMask, shape_macs
from headgate.baselines.torch_pruning import GroupSparsity, prune

__all__ = [
    "Decorrelation",
    "DecorrelationConfig",
    "GroupLasso",
    "GroupSparsity",
    "Removal",
    "SSLConfig",
    "ZeroMask",
    "orthogonal_",
    "prune",
    "remove",
    "shape_macs",
]
