"""The command line. Each command is a dataclass whose fields are its options; heavy imports wait until one runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from headgate.errors import ConfigError, HeadgateError

if TYPE_CHECKING:
    from headgate.train import Evaluation, Recipe


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
        steering: how the budget is kept: one common threshold, or a penalty on the expected MACs.
        elastic: also train for a range of budgets: half-width of the random threshold offset.
        close_epochs: close the gates slowly, over so many epochs.
        groups, granularity, shuffle, norm: see GateConfig. Default: the recipe's.
        width, num_classes: of the network. Default: the recipe's.
        epochs, batch_size, lr, seed, precision: Default: the recipe's.
        init_from: start from this dense checkpoint.
        teacher: distil from this dense checkpoint.
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
    steering: Literal["threshold", "penalty"] | None = None
    elastic: float | None = None
    close_epochs: float | None = None
    groups: int | None = None
    granularity: str | None = None
    shuffle: bool | None = None
    norm: str | None = None
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

        recipe = self.to_recipe()
        out = self.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}"
        console.print(f"{recipe.name} → {out}")
        result = train(recipe, out, resume=self.resume, console=not self.quiet)
        _show(console, {recipe.name: result.evaluation})
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
        recipe = replace(
            recipe,
            **_given(epochs=self.epochs, batch_size=self.batch_size, seed=self.seed, precision=self.precision),
            data=replace(recipe.data, **_given(source=self.data)),
            optimiser=replace(recipe.optimiser, **_given(lr=self.lr)),
            architecture=replace(recipe.architecture, **_given(width=self.width, num_classes=self.num_classes)),
            init_from=None if self.init_from is None else str(self.init_from),
            distill=None if self.teacher is None else DistillConfig(teacher=str(self.teacher)),
        )
        if self.dense:
            gate_options: tuple[str, ...] = (
                "mac_reduction",
                "target",
                "forced",
                "steering",
                "elastic",
                "close_epochs",
                "groups",
            )
            gate_options += ("granularity", "shuffle", "norm")
            given = [name for name in gate_options if getattr(self, name) is not None]
            if given:
                raise ConfigError(f"--dense trains without gates, got also {', '.join(given)}; drop one or the other")
            return recipes.dense(recipe)
        assert recipe.gate is not None
        assert recipe.budget is not None
        goal = _given(mac_reduction=self.mac_reduction, target=self.target, forced=self.forced)
        unset: dict[str, Any] = dict.fromkeys(("mac_reduction", "target", "forced")) if goal else {}
        gate = replace(
            recipe.gate,
            **_given(groups=self.groups, granularity=self.granularity, shuffle=self.shuffle, norm=self.norm),
        )
        budget = replace(
            recipe.budget,
            **(unset | goal),
            **_given(steering=self.steering, elastic=self.elastic, close_epochs=self.close_epochs),
        )
        variant = "static" if budget.forced == "closed" else gate.granularity
        return replace(recipe, name=f"{recipe.name}-{variant}", gate=gate, budget=budget)


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Accuracy and executed MACs of a trained model, layer by layer.

    Attributes:
        model: a run's folder, a checkpoint file, or a name that `headgate models` lists under "pretrained".
        data: folder or Hub name of the dataset. Default: what the run was trained on.
        shift: move every threshold by so many standard deviations first: the run-time dial.
        images: evaluate on the first so many test images only.
    """

    model: Positional[str]
    data: str | None = None
    shift: float = 0.0
    images: int | None = None

    def run(self, console: Console) -> None:
        from headgate.nn import shift_thresholds_
        from headgate.train import DataConfig, evaluate
        from headgate.train.finished import find_model
        from headgate.train.prepare import evaluation_batches

        model, config = find_model(self.model)
        if self.data is not None:
            config = replace(config or DataConfig(source=self.data), source=self.data)
        if config is None:
            raise ConfigError(f"data must be given: {self.model} does not say what it was trained on")
        if self.shift:
            shift_thresholds_(model, self.shift)
        evaluation = evaluate(model, evaluation_batches(model, config, limit=self.images))
        console.print(str(evaluation.counts), markup=False)
        _show(console, {self.model: evaluation})


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained model to a plan file for the native engine.

    Attributes:
        model: a run's folder, a checkpoint file, or a name that `headgate models` lists under "pretrained".
        plan: the file to write.
        image: channels, height and width of the images that the plan is for. Default: those that the run trained on.
    """

    model: Positional[str]
    plan: Positional[Path]
    image: tuple[int, int, int] | None = None

    def run(self, console: Console) -> None:
        import torch

        from headgate.exporting import export
        from headgate.train.finished import find_model, trained_shape

        model, _ = find_model(self.model)
        shape = self.image or trained_shape(Path(self.model))
        if min(shape) < 1:
            raise ConfigError(f"image must be channels, height and width, each ≥ 1, got {shape}")
        console.print(str(export(model, self.plan, example_input=torch.zeros(1, *shape))), markup=False)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time a network in the native engine, in other inference libraries, and pruned statically; docs/benchmark.md.

    A trained model decides on real images. An architecture, with --density and --mask, is timed with synthetic weights
    and images. A plan file is timed alone.

    Attributes:
        models: run folders, checkpoints or pretrained names, of one architecture; or an architecture; or a plan file.
        against: all, or any of torch, torch-channels-last, torch-compile, onnxruntime, openvino, ncnn, bf16 (the dense
            network in bfloat16), grouped and thinner (the network pruned statically to the same MACs). None: nothing.
        data: folder or Hub name of a trained model's images, or an .npy file of prepared ones.
        dense: the trained dense counterpart. Default: the first model with its gates held open.
        density: synthetic: share of open decisions of every gated layer.
        mask: synthetic: independent decisions, clustered ones, or one for each pixel and output group.
        groups: synthetic: G.
        image: synthetic: channels, height and width. Default: what the architecture was designed for.
        batches: images of one call.
        threads: one (pinned to a core), all (that this process may use), or both.
        repeats: timed calls of each runner; medians are compared.
        isa: hold the engine and the libraries to this instruction set.
        out: write the figures to <out>.json and a picture to <out>.png.
    """

    models: Positional[tuple[str, ...]]
    against: tuple[str, ...] = ("all",)
    data: str | None = None
    dense: str | None = None
    density: tuple[float, ...] = ()
    mask: tuple[Literal["iid", "clustered", "group"], ...] = ()
    groups: int = 8
    image: tuple[int, int, int] | None = None
    batches: tuple[int, ...] = (1, 32)
    threads: tuple[Literal["one", "all"], ...] = ("one", "all")
    repeats: int = 31
    isa: Literal["avx2"] | None = None
    out: Path | None = None

    def run(self, console: Console) -> None:
        from headgate.benchmarking import Request
        from headgate.benchmarking.show import run_shown

        options = {field.name: getattr(self, field.name) for field in fields(self)}
        out, held = options.pop("out"), options.pop("isa")
        run_shown(
            Request(densities=options.pop("density"), masks=options.pop("mask"), held=held, **options),
            console,
            out=out,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw a finished run: one HTML page and its pictures.

    Attributes:
        run: the run's folder.
        dense: folder of the dense counterpart's run, to compare accuracies.
        data: the dataset, for the pictures of images. Default: what the run was trained on.
        out: where to write. Default: <run>/report.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(name="run")]
    dense: Path | None = None
    data: str | None = None
    out: Path | None = None

    def run(self, console: Console) -> None:
        from headgate.report import write_report

        page = write_report(self.run_folder, dense=self.dense, data=self.data, out=self.out)
        console.print(f"report: {page}")


@dataclass(frozen=True, kw_only=True)
class Models:
    """List pretrained models, recipes, and architectures."""

    def run(self, console: Console) -> None:
        from headgate import models, recipes
        from headgate.checkpoint import list_pretrained

        console.print("[bold]pretrained[/] (headgate.pretrained, headgate eval)")
        for name in list_pretrained():
            console.print(f"  {name}")
        console.print("[bold]recipes[/] (headgate train)")
        for name in recipes.names():
            console.print(f"  {name}")
        own = [name for name in models.names() if "/" not in name]
        console.print(f"[bold]architectures[/] (headgate.models.create)\n  {', '.join(own)},")
        console.print("  torchvision/<any classifier>, timm/<any model>")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train a small CNN on scikit-learn's digits, dense and gated; compare them; write the report.

    Attributes:
        out: folder of the two runs.
        epochs: of each.
    """

    out: Path = Path("runs/demo")
    epochs: int | None = None

    def run(self, console: Console) -> None:
        from headgate import recipes
        from headgate.report import write_report
        from headgate.train import train

        recipe = replace(recipes.get("digits-cnn"), **_given(epochs=self.epochs))
        results = {}
        for run in (recipes.dense(recipe), recipe):
            console.print(f"training {run.name} for {run.epochs} epochs on scikit-learn's digits …")
            results[run.name] = train(run, self.out / run.name)
        _show(console, {name: result.evaluation for name, result in results.items()})
        gated, dense = results[recipe.name], results[recipes.dense(recipe).name]
        console.print(f"report: {write_report(gated.folder, dense=dense.folder)}")


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show(console: Console, evaluations: dict[str, Evaluation]) -> None:
    table = Table(box=None)
    table.add_column("model")
    for heading in ("top-1 %", "density", "MAC reduction, gated layers", "whole network"):
        table.add_column(heading, justify="right")
    for name, evaluation in evaluations.items():
        counts = evaluation.counts
        gated = bool(counts.gated_layers)
        table.add_row(
            name,
            f"{100 * evaluation.accuracy:.2f}",
            f"{counts.density:.3f}" if gated else "–",
            f"{counts.mac_reduction:.2f}×" if gated else "–",
            f"{counts.network_mac_reduction:.2f}×",
        )
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `headgate`. Returns the exit code: 0, 1 for an error of use, 130 when interrupted."""
    console = Console()
    command = tyro.cli(
        Annotated[
            Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Eval, tyro.conf.subcommand("eval")]
            | Annotated[Export, tyro.conf.subcommand("export")]
            | Annotated[Bench, tyro.conf.subcommand("bench")]
            | Annotated[Report, tyro.conf.subcommand("report")]
            | Annotated[Models, tyro.conf.subcommand("models")]
            | Annotated[Demo, tyro.conf.subcommand("demo")],
            tyro.conf.OmitSubcommandPrefixes,
        ],
        args=arguments,
        prog="headgate",
        description="Channel gating: make a CNN cheaper, train it to a budget, see what was saved.",
    )
    try:
        command.run(console)
    except HeadgateError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(escape(str(interrupt) or "interrupted"), highlight=False, soft_wrap=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
