"""Torch-Pruning's own pruners, run to a named MAC reduction.

Source: Fang, Ma, Song, Mi, Wang, "DepGraph: towards any structural pruning", CVPR 2023; the package torch-pruning
(extra `baselines`). Nothing of the method is ours: which channels go, and how, is the package's doing; where to stop is
told by headgate's counting.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any, Final, Literal, get_args

from torch import Tensor, nn

from headgate.baselines.channels import as_graph, find_channels
from headgate.counting import count
from headgate.errors import BackendError, ConfigError, ModelError
from headgate.models import identify
from headgate.nn.config import require_finite

__all__ = ["GroupSparsity", "Method", "prune"]

Method = Literal["group-l1", "group-l2", "depgraph"]
STEPS: Final = 100  # each removes that share of the channels, so that the reduction is passed by about a step


def prune(model: nn.Module, example_input: Tensor, *, mac_reduction: float, method: Method = "group-l2") -> nn.Module:
    """A copy with the least important channels of the whole network removed, for fine-tuning; it can be saved.

    Args:
        model: dense. It is left as it is.
        example_input: (n, c, h, w).
        mac_reduction: MACs of the whole network (convolutions and linear layers) before ÷ after; the first step of the
            pruner that reaches it ends the pruning.
        method: importance of a group of tied channels. "group-l1", "group-l2": mean norm of its weights. "depgraph":
            what the authors use after training under `GroupSparsity`, the ℓ2 norm by the group's largest.
    Raises:
        ConfigError: `mac_reduction` is not above 1, or `method` is unknown.
        BackendError: the package is missing.
        ModelError: the reduction cannot be reached; the model is gated, or cannot be traced.
    """
    require_finite("mac_reduction", mac_reduction)
    if mac_reduction <= 1:
        raise ConfigError(f"mac_reduction must be > 1, got {mac_reduction}")
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    pruned, architecture = copy.deepcopy(model), identify(model)
    if architecture is not None:
        pruned.architecture = architecture  # type: ignore[assignment]  # nn.Module's attributes are tensors to mypy
    pruner = _pruner(pruned, example_input, method)
    before = reached = count(pruned, example_input).network_dense_macs
    for _ in range(STEPS):
        pruner.step()
        reached = count(pruned, example_input).network_dense_macs
        if before >= mac_reduction * reached:
            return pruned
    raise ModelError(
        f"mac_reduction must be at most {before / reached:.2f} for this {type(model).__name__}, where each layer has "
        f"the fewest channels that Torch-Pruning leaves, got {mac_reduction}"
    )


class GroupSparsity:
    """DepGraph's regulariser: in every step, between `backward` and the optimiser, decay weak groups more.

    Args:
        model: it is trained, and pruned by `prune(…, method="depgraph")` at the end.
        example_input: (n, c, h, w).
        weight: of the regulariser.
    Raises: ConfigError: `weight` is negative. BackendError, ModelError: see `prune`.
    """

    def __init__(self, model: nn.Module, example_input: Tensor, *, weight: float = 1e-4) -> None:
        require_finite("weight", weight)
        if weight < 0:
            raise ConfigError(f"weight must be ≥ 0, got {weight}")
        self._model = model
        self._pruner = _pruner(model, example_input, "depgraph", reg=weight)

    def add_gradients_(self) -> None:
        """Add the regulariser's gradient to that of every parameter."""
        self._pruner.regularize(self._model)


def _pruner(model: nn.Module, example_input: Tensor, method: Method, **options: Any) -> Any:
    package = _package()
    outputs = find_channels(as_graph(model, example_input), example_input).outputs
    importance = package.importance.GroupMagnitudeImportance(
        p=1 if method == "group-l1" else 2, normalizer="max" if method == "depgraph" else "mean"
    )
    kind = package.pruner.GroupNormPruner if method == "depgraph" else package.pruner.BasePruner
    modes = [(module, module.training) for module in model.modules()]
    try:
        return kind(
            model.eval(),
            example_input,
            importance,
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=[model.get_submodule(name) for name in outputs],
            in_channel_groups={},  # the package's defaults are shared by all pruners of a process, and written to
            out_channel_groups={},
            num_heads={},
            **options,
        )
    finally:
        for module, training in modes:
            module.training = training


def _package() -> ModuleType:
    try:
        import torch_pruning
    except ImportError as error:
        raise BackendError(
            "this baseline needs the package torch-pruning, got no such package; pip install 'headgate[baselines]'"
        ) from error
    package: ModuleType = torch_pruning
    return package
