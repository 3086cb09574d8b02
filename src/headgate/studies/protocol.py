"""How much a study trains: the network, the schedules, and what the trials start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from headgate import recipes
from headgate.errors import ConfigError
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DistillConfig, Recipe, ScheduleConfig

__all__ = ["DENSE", "PROTOCOLS", "Protocol", "get_protocol"]

DENSE: Final = "dense"
"""In a recipe, in place of a path: the checkpoint of the protocol's dense network."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the trials of any study are trained.

    Attributes:
        dense: the dense network's run.
        binary: a binary network's; studies take its architecture and optimiser.
        start: what the trials start from, which is then also their teacher: `DENSE`, the dense network, trained before
            them; or one that comes with headgate, by its name. None: fresh weights.
        epochs: of every trial.
        lr: peak learning rate of what does not start from fresh weights.
        close_epochs: over so many epochs the gates close.
        groups: G, where a study does not sweep it; the paper's is 8, whose base path would be two channels wide in a
            ResNet-20.
        targets: T, where a study sweeps it; as the appendix does.
        reductions: MAC reductions, where a study sweeps them.
        budgets: the same, of eight groups, where it asks whether they are reached.
        shipped: granularity → trained network that comes with headgate, to be looked at where a study asks what
            trained networks do; the rest are trained.
        embedded: needs no data but what comes with scikit-learn.
    """

    name: str
    title: str
    dense: Recipe
    binary: Recipe
    epochs: int
    lr: float
    start: str | None
    close_epochs: float = 0.0
    groups: int = 8
    targets: tuple[float, ...] = (0.0, 1.0, 2.0)
    reductions: tuple[float, ...] = (2.0, 3.0, 4.0)
    budgets: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    shipped: Mapping[str, str] = field(default_factory=dict)
    embedded: bool = False

    def trial(self, gate: GateConfig | None, budget: BudgetConfig | None, seed: int) -> Recipe:
        """A gated run, or with neither the control: the dense network, trained just as long."""
        if budget is not None and budget.forced is None:
            budget = replace(budget, close_epochs=self.close_epochs)
        recipe = replace(self.dense, gate=gate, budget=budget, seed=seed, epochs=self.epochs)
        if self.start is None:
            return recipe
        return replace(
            recipe,
            init_from=self.start,
            distill=DistillConfig(teacher=self.start),
            optimiser=replace(recipe.optimiser, lr=self.lr),
        )


def _smoke() -> Protocol:
    dense = recipes.dense(replace(recipes.get("digits-cnn"), epochs=1))
    return Protocol(
        name="smoke",
        title="digits, one epoch: shows that a study runs, and nothing else",
        dense=dense,
        binary=recipes.get("digits-binary-resnet"),
        start=DENSE,
        epochs=1,
        lr=0.02,
        targets=(1.0,),
        reductions=(2.0,),
        budgets=(3.0,),
        embedded=True,
    )


def _short() -> Protocol:
    dense = replace(
        recipes.dense(recipes.get("resnet20-cifar10")), schedule=ScheduleConfig(kind="cosine", warmup_epochs=0.25)
    )
    return Protocol(
        name="short",
        title="ResNet-20, 2 epochs from a dense network of 30, which is also the teacher",
        dense=dense,
        binary=recipes.get("binary-resnet20-cifar10"),
        start="resnet20-cifar10-dense",
        epochs=2,
        lr=0.05,
        close_epochs=0.75,
        groups=4,
        reductions=(2.0, 2.5, 3.0),
        shipped={
            "dense": "resnet20-cifar10-dense",
            "activation": "resnet20-cifar10-activation",
            "group": "resnet20-cifar10-group",
        },
    )


def _paper() -> Protocol:
    dense = recipes.dense(recipes.get("resnet18-cifar10-paper"))
    return Protocol(
        name="paper",
        title="ResNet-18, 300 epochs from scratch (appendix A.3)",
        dense=dense,
        binary=recipes.get("binary-vgg-small-cifar10"),
        start=None,
        epochs=dense.epochs,
        lr=dense.optimiser.lr,
    )


PROTOCOLS: Final[Mapping[str, Callable[[], Protocol]]] = MappingProxyType(
    {"smoke": _smoke, "short": _short, "paper": _paper}
)
"""What makes each protocol, by its name."""


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises: ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]()
