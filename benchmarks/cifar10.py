"""The CIFAR-10 table: dense, gated, and the controls that a gate must beat, on the same data and schedule.

    python benchmarks/cifar10.py --data ../shared/data/cifar10 --out runs/cifar10 --seeds 1 --jobs 2

Every gated or static variant, and "longer", starts from the dense run of its seed, learns from it as its teacher, and
trains `--epochs` more; "thinner" trains from scratch for as many epochs in all, with the same teacher. Finished runs
are kept and unfinished ones resumed, so the command can be killed and repeated; results of what is finished go to
benchmarks/results/cifar10.json, and the table to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from headgate import recipes
from headgate.files import write_atomic
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DistillConfig, Recipe, train

RESULTS = Path(__file__).parent / "results" / "cifar10.json"


@dataclass(frozen=True)
class Variant:
    """A row of the table; `gate` None is a dense network, of another width where `width` says so."""

    title: str
    gate: GateConfig | None = None
    budget: BudgetConfig | None = None
    width: int | None = None


VARIANTS = {
    "dense": Variant("dense"),
    "longer": Variant("dense, trained on like the gated ones"),
    "activation": Variant(
        "activation gate, G = 4, 3×",
        GateConfig(groups=4, granularity="activation", shuffle=True),
        BudgetConfig(mac_reduction=3.0, close_epochs=3),
    ),
    "group": Variant(
        "group gate, G = 4, 2.5×",
        GateConfig(groups=4, granularity="group", shuffle=True),
        BudgetConfig(mac_reduction=2.5, close_epochs=3),
    ),
    "static4": Variant(
        "static: gates never open, G = 4",
        GateConfig(groups=4, shuffle=True),
        BudgetConfig(forced="closed"),
    ),
    "static2": Variant(
        "static: gates never open, G = 2",
        GateConfig(groups=2, shuffle=True),
        BudgetConfig(forced="closed"),
    ),
    "thinner": Variant("uniformly thinner, width 9", width=9),
}


def recipe(variant: Variant, seed: int, options: argparse.Namespace) -> Recipe:
    """The run behind one cell of the table."""
    base = recipes.get(options.recipe)
    base = replace(base, seed=seed, data=replace(base.data, source=options.data), epochs=options.dense_epochs)
    if variant is VARIANTS["dense"]:
        return recipes.dense(base)
    dense = str(folder("dense", seed, options) / "model.safetensors")
    teacher = DistillConfig(teacher=dense)
    if variant.width is not None:
        thinner = replace(base.architecture, width=variant.width)
        epochs = options.dense_epochs + options.epochs
        return replace(recipes.dense(base), architecture=thinner, epochs=epochs, distill=teacher)
    return replace(
        base,
        gate=variant.gate,
        budget=variant.budget,
        epochs=options.epochs,
        init_from=dense,
        distill=teacher,
        optimiser=replace(base.optimiser, lr=0.05),
    )


def folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a run lives."""
    return Path(options.out) / f"{name}-s{seed}"


def run_all(options: argparse.Namespace) -> None:
    """Run what is missing, `--jobs` at a time; the dense runs first, for the others start from them."""

    def run(name: str, seed: int) -> None:
        if not (folder(name, seed, options) / "summary.json").exists():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name, str(seed)]
            threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})

    for wave in (["dense"], [name for name in options.variants if name != "dense"]):
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda trial: run(*trial), [(name, seed) for seed in range(options.seeds) for name in wave]))


def collect(options: argparse.Namespace) -> dict[str, object]:
    """The finished runs' figures, by variant."""
    rows: dict[str, object] = {}
    for name, variant in VARIANTS.items():
        summaries = []
        for seed in range(options.seeds):
            path = folder(name, seed, options)
            if not (path / "summary.json").exists():
                continue
            if Recipe.from_dict(json.loads((path / "recipe.json").read_text())) != recipe(variant, seed, options):
                raise SystemExit(f"{path} holds a run of other options; choose another --out")
            summaries.append(json.loads((path / "summary.json").read_text()))
        if summaries:
            keys = ("seed", "accuracy", "mac_reduction", "network_mac_reduction", "density", "epochs", "seconds")
            rows[name] = {"title": variant.title, "runs": [{key: run[key] for key in keys} for run in summaries]}
    return {
        "command": f"python benchmarks/cifar10.py --seeds {options.seeds} --epochs {options.epochs} "
        f"--dense-epochs {options.dense_epochs} --recipe {options.recipe}",
        "data": options.data_name,
        "date": date.today().isoformat(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "variants": rows,
    }


def show(results: dict[str, object]) -> None:
    """Print the table in Markdown."""
    print("| network | top-1 % | MAC reduction, gated layers | whole network | density | seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in results["variants"].values():  # type: ignore[attr-defined]
        runs = row["runs"]

        def mean(key: str, runs: list[dict[str, float]] = runs) -> float:
            return statistics.fmean(run[key] for run in runs)

        spread = statistics.stdev(100 * run["accuracy"] for run in runs) if len(runs) > 1 else None
        accuracy = f"{100 * mean('accuracy'):.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        reductions = f"{mean('mac_reduction'):.2f}× | {mean('network_mac_reduction'):.2f}×"
        print(f"| {row['title']} | {accuracy} | {reductions} | {mean('density'):.3f} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG-75 copy)", help="what to call the data in the results")
    parser.add_argument("--out", default="runs/cifar10")
    parser.add_argument("--recipe", default="resnet20-cifar10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--only", nargs=2, metavar=("VARIANT", "SEED"), help="run one trial in this process")
    parser.add_argument("--collect", action="store_true", help="only collect what is finished")
    options = parser.parse_args()
    if options.only is not None:
        name, seed = options.only[0], int(options.only[1])
        train(recipe(VARIANTS[name], seed, options), folder(name, seed, options))
        return
    if not options.collect:
        run_all(options)
    results = collect(options)
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomic(RESULTS, json.dumps(results, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
