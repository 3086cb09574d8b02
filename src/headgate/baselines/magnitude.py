"""Magnitude pruning on a schedule: the smallest weights, or filters, go, more of them as training goes on.

Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR 2018
workshop; for filters, Li et al., "Pruning filters for efficient ConvNets", ICLR 2017. Pruning itself is
`torch.nn.utils.prune`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from torch.nn.utils import prune

from headgate.baselines.conversion import matches, require_numbers, require_patterns
from headgate.baselines.perforation import perforated_layers
from headgate.counting import count
from headgate.counting.passes import Batches
from headgate.errors import ConfigError, ModelError
from headgate.nn import GatedConv2d, gated_layers

Unit = Literal["weight", "filter"]
Scope = Literal["layer", "network"]


@dataclass(frozen=True, kw_only=True)
class PruningSchedule:
    """Sparsity over training: s(t) = final + (initial − final) · (1 − (t − begin) ÷ (end − begin))³.

    It rises fast while much is redundant and slowly toward the end, to leave training time to recover.

    Attributes:
        final: sparsity at and after `end`, in (0, 1).
        initial: sparsity at `begin`, in [0, final].
        begin, end: steps; 0 before `begin`.
        every: steps from one pruning to the next.
    Raises: ConfigError.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.final < 1:
            raise ConfigError(f"final must be a share of zeros in (0, 1), got {self.final!r}")
        if not 0 <= self.initial <= self.final:
            raise ConfigError(f"initial must be in [0, final={self.final}], got {self.initial!r}")
        if not 0 <= self.begin < self.end:
            raise ConfigError(f"begin and end must be steps 0 ≤ begin < end, got begin={self.begin}, end={self.end}")
        if self.every < 1:
            raise ConfigError(f"every must be a number of steps ≥ 1, got {self.every!r}")

    def sparsity(self, step: int) -> float:
        """Share of zeros at a step."""
        if step < self.begin:
            return 0.0
        left = 1 - min((step - self.begin) / (self.end - self.begin), 1.0)
        return self.final + (self.initial - self.final) * left**3

    def due(self, step: int) -> bool:
        """Whether to prune at this step."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)


class MagnitudePruner:
    """Prunes the weights of a model's convolutions and linear layers, gated convolutions included, by a schedule.

    Between prunings masks hold the zeros through training; the parameters stay the ones that the optimiser has.

    Args:
        model: with nothing pruned by `torch.nn.utils.prune` yet.
        unit: "weight": single weights, which no engine here runs any faster. "filter": whole output channels by their
            ℓ1 norm; linear layers are left alone.
        scope: "layer": the same share of each layer; "network": the smallest of all layers together. Filters of
            different layers cannot be compared: they go by layer.
        exclude: names or patterns of layers to leave alone.
    Raises:
        ConfigError: another unit or scope, filters by network, or a pattern that matches nothing.
        ModelError: nothing to prune, something pruned already, a binary layer, or a perforated model.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: PruningSchedule,
        *,
        unit: Unit = "weight",
        scope: Scope = "layer",
        exclude: tuple[str, ...] = (),
    ) -> None:
        for option, value, choices in (("unit", unit, Unit), ("scope", scope, Scope)):
            if value not in get_args(choices):
                raise ConfigError(f"{option} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if unit == "filter" and scope == "network":
            raise ConfigError("scope must be 'layer' where unit is 'filter', got 'network'")
        kinds = (nn.Conv2d, GatedConv2d) if unit == "filter" else (nn.Conv2d, GatedConv2d, nn.Linear)
        gates = {id(part) for layer in gated_layers(model).values() for part in layer.gate.modules()}
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, kinds) and id(module) not in gates
        }
        require_patterns("exclude", exclude, layers)
        self.layers = {name: module for name, module in layers.items() if not matches(name, exclude)}
        if not self.layers:
            raise ModelError(f"model must have layers to prune, got {type(model).__name__} with none")
        require_numbers(self.layers)
        if perforated_layers(model):
            raise ModelError("model must not be perforated, got one that is; prune it first, then perforate it")
        if prune.is_pruned(model):
            raise ModelError("model must not be pruned yet, got one with pruning masks; finish that pruning first")
        self.schedule, self.unit, self.scope = schedule, unit, scope

    def step(self, step: int) -> float:
        """Prune where the schedule says so; call it before each training step's forward pass, from 0 on.

        Returns: the schedule's sparsity at this step.
        """
        sparsity = self.schedule.sparsity(step)
        if self.schedule.due(step):
            self.finish_()  # zeros are smallest, so they are chosen again, and masks do not pile up
            if self.unit == "filter":
                for module in self.layers.values():
                    prune.ln_structured(module, "weight", sparsity, n=1, dim=0)  # type: ignore[no-untyped-call]
            elif self.scope == "network":
                weights = [(module, "weight") for module in self.layers.values()]
                prune.global_unstructured(weights, prune.L1Unstructured, amount=sparsity)
            else:
                for module in self.layers.values():
                    prune.l1_unstructured(module, "weight", sparsity)  # type: ignore[no-untyped-call]
        return sparsity

    def finish_(self) -> None:
        """Write the zeros into the weights and remove the masks: a plain model again, which training would fill."""
        for module in self.layers.values():
            if prune.is_pruned(module):
                prune.remove(module, "weight")  # type: ignore[no-untyped-call]

    def sparsity(self) -> float:
        """Share of zeros among the weights that may be pruned."""
        weights = [module.weight for module in self.layers.values()]
        return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@dataclass(frozen=True, kw_only=True)
class TheoreticalMacs:
    """Multiply-accumulates that weights other than zero stand for, per image: *theoretical*.

    A dense kernel executes every one of them, zero or not, and headgate's engine has no sparse kernels: no time
    follows from this figure. Do not put it beside executed MACs without saying so.

    Attributes:
        dense_macs: of all convolutions and linear layers.
        nonzero_macs: of them those whose weight is not zero.
        by_layer: name → (dense, nonzero).
    """

    dense_macs: int
    nonzero_macs: int
    by_layer: dict[str, tuple[int, int]]

    @property
    def theoretical_mac_reduction(self) -> float:
        """Dense ÷ nonzero; infinite where every weight is zero."""
        return self.dense_macs / self.nonzero_macs if self.nonzero_macs else float("inf")


def theoretical_macs(model: nn.Module, loader: Batches, *, limit: int | None = 1) -> TheoreticalMacs:
    """Count the MACs of nonzero weights, layer by layer, from how often `headgate.count` finds each layer to run.

    Args:
        model: pruned, finished or not. Not gated: what a gate skips differs from weight to weight.
        loader, limit: as for `count`; one image is enough, for no layer depends on it.
    Raises: ModelError: it has gated convolutions, binary ones, or none at all. DataError: no images.
    """
    if gated_layers(model):
        raise ModelError(f"model must not be gated, got {type(model).__name__} with gates; count executes them")
    modules = dict(model.named_modules())
    require_numbers(modules)
    by_layer = {}
    for layer in count(model, loader, limit=limit).layers:
        weight = modules[layer.name.split("#")[0]].weight
        uses = layer.dense_macs // layer.shape.weights
        by_layer[layer.name] = (layer.dense_macs, uses * int(weight.count_nonzero()))
    return TheoreticalMacs(
        dense_macs=sum(dense for dense, _ in by_layer.values()),
        nonzero_macs=sum(nonzero for _, nonzero in by_layer.values()),
        by_layer=by_layer,
    )
