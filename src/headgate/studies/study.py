"""What a study is: a question, the trials that answer it, and how the answer is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headgate.baselines import PruningConfig
from headgate.errors import ConfigError
from headgate.nn import GateConfig
from headgate.studies.protocol import Protocol
from headgate.studies.trial import Point, Result, Trial
from headgate.train import BudgetConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Study", "dense_trial", "gated", "over_seeds", "pruned", "static", "thinner"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study.

    Attributes:
        name: on the command line.
        question: what it answers, in a line.
        source: where the claim stands.
        trials: from a protocol and a number of seeds.
        figures: by name, each drawn from the finished results in the order of the trials; at least one result.
    """

    name: str
    question: str
    source: str
    trials: Callable[[Protocol, int], list[Trial]]
    figures: Mapping[str, Callable[[Sequence[Result]], Figure]]


def dense_trial(protocol: Protocol) -> Trial:
    """The line to hold the others against: the dense network, trained as long as they are."""
    return Trial(variant="dense", point={}, recipe=protocol.trial(None, None, seed=0))


def gated(
    protocol: Protocol,
    variant: str,
    point: Point,
    seed: int,
    *,
    budget: BudgetConfig | None = None,
    measure: str | None = None,
    **gate: Any,
) -> Trial:
    """A gated network.

    Args:
        budget: None: a threshold target of `point["T"]`.
        gate: of its `GateConfig`, beyond the protocol's groups, shuffled, and one decision for each activation.
    """
    config = GateConfig(**({"groups": protocol.groups, "shuffle": True} | gate))
    budget = budget or BudgetConfig(target=float(point["T"]))
    return Trial(variant=variant, point=point, recipe=protocol.trial(config, budget, seed), measure=measure)


def pruned(
    protocol: Protocol, variant: str, reduction: float, seed: int, *, measure: str | None = None, **options: Any
) -> Trial:
    """The dense network, pruned by another method.

    Args:
        reduction: of the whole network's MACs.
        options: of its `PruningConfig`.
    """
    recipe = protocol.trial(None, None, seed)
    pruning = PruningConfig(mac_reduction=reduction, **options)
    point = {"reduction": reduction}
    return Trial(variant=variant, point=point, recipe=replace(recipe, pruning=pruning), measure=measure)


def static(protocol: Protocol, groups: int, seed: int, *, measure: str | None = None) -> Trial:
    """The control of every gate: it never opens. What is left is a network of grouped convolutions, shuffled."""
    config = GateConfig(groups=groups, shuffle=True)
    recipe = protocol.trial(config, BudgetConfig(forced="closed"), seed)
    return Trial(variant="static groups", point={"reduction": float(groups)}, recipe=recipe, measure=measure)


def thinner(protocol: Protocol, reduction: float, seed: int, *, measure: str | None = None) -> Trial:
    """The other control: fewer channels everywhere, from fresh weights, with the dense network as its teacher."""
    recipe = replace(protocol.trial(None, None, seed), init_from=None)
    width = recipe.architecture.width
    if width is None:
        raise ConfigError(f"a thinner network needs one of headgate's own, got {recipe.architecture.name}")
    architecture = replace(recipe.architecture, width=max(1, round(width / reduction**0.5)))
    recipe = replace(recipe, architecture=architecture)
    return Trial(variant="thinner", point={"reduction": reduction}, recipe=recipe, measure=measure)


def over_seeds(seeds: int, trials: Callable[[int], Sequence[Trial]]) -> list[Trial]:
    """The trials of each seed, all of one seed before the next: a study that is stopped early has whole curves."""
    return [trial for seed in range(seeds) for trial in trials(seed)]
