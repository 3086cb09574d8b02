"""`headgate train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from headgate.cli.options import given
from headgate.cli.show import show
from headgate.errors import ConfigError

if TYPE_CHECKING:
    from headgate.train import Recipe

GOALS = ("mac_reduction", "target", "forced")
BUDGET = ("steering", "weight", "weight_final", "elastic", "close_epochs", "slope_final")
GATE = (
    "groups", "granularity", "grouped", "shuffle", "norm", "threshold", "slope", "channel_bound", "include", "exclude",
)  # fmt: skip
"""The options that are fields of BudgetConfig (the first of them the goals, of which there is one) and GateConfig."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe: gated to a budget, or dense. Interrupt it with Ctrl-C; the same command resumes.

    Attributes:
        recipe: name of a recipe; `headgate models` lists them.
        data: folder with parquet files or class folders, or a name on the Hub. Default: the recipe's.
        out: the run's folder. Default: runs/<recipe>-<variant>-seed<seed>.
        dense: train the dense counterpart instead.
        mac_reduction: dense ÷ executed MACs of the gated layers to end at.
        target: threshold target T in standard deviations, instead.
        forced: hold the gates in one state throughout, instead: "closed" is the static grouped control.
        steering: how the budget is kept: one common threshold, a penalty on the expected MACs, or, for a target T, by
            pulling thresholds to it with the loss alone. Default: the recipe's, or the first where it does not fit.
        weight, weight_final: λ of the threshold loss, and at the end of training where it changes.
        elastic: also train for a range of budgets: half-width of the random threshold offset.
        close_epochs: close the gates slowly, over so many epochs.
        groups, granularity, grouped, shuffle, norm: see GateConfig. Default: the recipe's.
        threshold: initial Δ, in standard deviations.
        slope, slope_final: ε of the surrogate gradient, and at the end of training where it changes.
        channel_bound: τ: skip channels of an image with at most this fraction of open decisions.
        include, exclude: names or patterns of convolutions to gate, or to leave dense, whatever the rules say.
        width, num_classes: of the network. Default: the recipe's.
        epochs, batch_size, lr, seed, precision: Default: the recipe's.
        init_from: start from this dense checkpoint; or the name of a model that comes with headgate.
        teacher: distil from this checkpoint, or named model.
        resume: False refuses a folder that holds a run.
        quiet: no progress bar.
    """

    recipe: Positional[str]
    data: str | None = None
    out: Path | None = None
    dense: bool = False
    mac_reduction: float | None = None
    target: float | None = None
    forced: Literal["open", "closed"] | None = None
    steering: Literal["threshold", "penalty", "pull"] | None = None
    weight: float | None = None
    weight_final: float | None = None
    elastic: float | None = None
    close_epochs: float | None = None
    groups: int | None = None
    granularity: str | None = None
    grouped: bool | None = None
    shuffle: bool | None = None
    norm: str | None = None
    threshold: float | None = None
    slope: float | None = None
    slope_final: float | None = None
    channel_bound: float | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    width: int | None = None
    num_classes: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int | None = None
    precision: Literal["fp32", "bf16"] | None = None
    init_from: Path | None = None
    teacher: Path | None = None
    resume: bool = True
    quiet: bool = False

    def run(self, console: Console) -> None:
        import torch.distributed

        from headgate.train import train

        if int(os.environ.get("RANK", "0")):
            console = Console(quiet=True)  # of several processes the first speaks
        recipe = self.to_recipe()
        out = self.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}"
        console.print(f"{recipe.name} → {out}")
        result = train(recipe, out, resume=self.resume, console=not self.quiet)
        show(console, {recipe.name: result.evaluation})
        console.print(f"model, counts and metrics: {result.folder}; draw them with: headgate report {result.folder}")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # or its threads may outlive the interpreter and abort it

    def to_recipe(self) -> Recipe:
        """The named recipe with this command's options.

        Raises: ConfigError: unknown recipe, or options that exclude one another.
        """
        from headgate import recipes
        from headgate.train import DistillConfig

        recipe = recipes.get(self.recipe)
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes must be ≥ 1, got {self.num_classes}")
        recipe = replace(
            recipe,
            **self._given(("epochs", "batch_size", "seed", "precision")),
            data=replace(recipe.data, **given(source=self.data)),
            optimiser=replace(recipe.optimiser, **given(lr=self.lr)),
            architecture=replace(recipe.architecture, **self._given(("width", "num_classes"))),
            init_from=None if self.init_from is None else str(self.init_from),
            distill=None if self.teacher is None else DistillConfig(teacher=str(self.teacher)),
        )
        if self.dense:
            clashing = [name for name in (*GOALS, *BUDGET, *GATE) if getattr(self, name) is not None]
            if clashing:
                raise ConfigError(
                    f"--dense trains without gates, got also {', '.join(clashing)}; drop one or the other"
                )
            return recipes.dense(recipe)
        assert recipe.gate is not None
        assert recipe.budget is not None
        goal = self._given(GOALS)
        unset: dict[str, Any] = dict.fromkeys(GOALS) if goal else {}
        if goal and "target" not in goal and recipe.budget.steering == "pull":
            unset["steering"] = "threshold"
        gate = replace(recipe.gate, **self._given(GATE))
        budget = replace(recipe.budget, **(unset | goal | self._given(BUDGET)))
        variant = "static" if budget.forced == "closed" else gate.granularity
        return replace(recipe, name=f"{recipe.name}-{variant}", gate=gate, budget=budget)

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of these options that were given."""
        return given(**{name: getattr(self, name) for name in names})
