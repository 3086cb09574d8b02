"""The CIFAR-10 tables: dense, gated, and the controls that a gate must beat, on the same data and schedule.

    python benchmarks/cifar10.py --data ../shared/data/cifar10 --jobs 2
    python benchmarks/cifar10.py --data ../shared/data/cifar10 --protocol resnet18w32 --jobs 2

Every variant but the thinner network and "scratch" starts from one dense network, has it as its teacher and trains some
epochs more; so does "longer", the dense control. Seeds differ in the order and augmentation of the images. Finished
trials are kept in benchmarks/results/, with the recipe that made them, and not run again unless the recipe changed;
unfinished ones resume. The command can be killed and repeated; at its end it prints the table.
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
from typing import Any

import torch

from headgate import recipes
from headgate.files import write_atomic
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DistillConfig, Recipe, train

HERE = Path(__file__).parent
DENSE = "dense"
LR = 0.05  # of whatever starts from the dense network


@dataclass(frozen=True)
class Variant:
    """A row of a table.

    Attributes:
        gate: None is a dense network.
        width: of the network, where it is not the protocol's.
        distil: learn from the dense network too.
        scratch: train as many epochs in all, the dense network's and the others', from scratch.
        seeds: at least so many; `--seeds` asks for more.
    """

    title: str
    gate: GateConfig | None = None
    budget: BudgetConfig | None = None
    width: int | None = None
    distil: bool = True
    scratch: bool = False
    seeds: int = 1


@dataclass(frozen=True)
class Protocol:
    """A table: the network, the schedules, the rows."""

    recipe: str
    width: int
    dense_epochs: int
    epochs: int
    variants: dict[str, Variant]


def gated(granularity: str, groups: int, reduction: float, *, shuffle: bool = True, **other: Any) -> Variant:
    """A gated row; its gates close over three epochs."""
    note = "" if shuffle else ", no shuffle"
    note += "" if other.get("distil", True) else ", no teacher"
    note += ", from scratch" if other.get("scratch", False) else ""
    return Variant(
        f"{granularity} gate, G = {groups}, {reduction:g}×{note}",
        GateConfig(groups=groups, granularity=granularity, shuffle=shuffle),  # type: ignore[arg-type]
        BudgetConfig(mac_reduction=reduction, close_epochs=3),
        **other,
    )


def static(groups: int, **other: Any) -> Variant:
    """The control: the same network with every gate closed from the start."""
    note = ", from scratch" if other.get("scratch", False) else ""
    return Variant(
        f"static: gates never open, G = {groups}{note}",
        GateConfig(groups=groups, shuffle=True),
        BudgetConfig(forced="closed"),
        **other,
    )


PROTOCOLS = {
    "resnet20": Protocol(
        recipe="resnet20-cifar10",
        width=16,
        dense_epochs=30,
        epochs=10,
        variants={
            DENSE: Variant("dense"),
            "longer": Variant("dense, trained on like the gated ones"),
            "activation4": gated("activation", 4, 3),
            "activation8": gated("activation", 8, 3),
            "activation4-noshuffle": gated("activation", 4, 3, shuffle=False),
            "activation4-noteacher": gated("activation", 4, 3, distil=False),
            "activation4-scratch": gated("activation", 4, 3, scratch=True),
            "group4": gated("group", 4, 2.5),
            "group4-scratch": gated("group", 4, 2.5, scratch=True),
            "group8": gated("group", 8, 2.5),
            "static4": static(4),
            "static2": static(2),
            "static4-scratch": static(4, scratch=True),
            "static2-scratch": static(2, scratch=True),
            "thinner": Variant("uniformly thinner, width 9, from scratch", width=9, scratch=True),
        },
    ),
    "resnet18w32": Protocol(
        recipe="resnet18-cifar10",
        width=32,
        dense_epochs=10,
        epochs=8,
        variants={
            DENSE: Variant("dense"),
            "longer": Variant("dense, trained on like the gated ones"),
            "activation4": gated("activation", 4, 3),
            "group4": gated("group", 4, 2.5),
            "static4": static(4),
        },
    ),
}


class Table:
    """One protocol's trials: their recipes, folders and record."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.protocol, self.options = PROTOCOLS[name], options
        self.out = Path(options.out) / name
        self.record = HERE / "results" / f"cifar10-{name}.json"

    def folder(self, name: str, seed: int) -> Path:
        """Where a run lives."""
        return self.out / f"{name}-s{seed}"

    def recipe(self, name: str, seed: int) -> Recipe:
        """The run behind one cell of the table."""
        protocol, variant = self.protocol, self.protocol.variants[name]
        base = recipes.get(protocol.recipe)
        base = replace(
            base,
            architecture=replace(base.architecture, width=variant.width or protocol.width),
            data=replace(base.data, source=self.options.data),
            gate=variant.gate,
            budget=variant.budget,
            epochs=protocol.dense_epochs,
            seed=seed,
        )
        if variant.gate is None:
            base = recipes.dense(base)
        if name == DENSE:
            return base
        dense = str(self.folder(DENSE, 0) / "model.safetensors")
        base = replace(base, distill=DistillConfig(teacher=dense) if variant.distil else None)
        if variant.scratch:
            return replace(base, epochs=protocol.dense_epochs + protocol.epochs)
        return replace(base, epochs=protocol.epochs, init_from=dense, optimiser=replace(base.optimiser, lr=LR))

    def identity(self, name: str, seed: int) -> dict[str, Any]:
        """The recipe as the record keeps it: without this machine's paths."""
        recipe = self.recipe(name, seed).to_dict()
        recipe["data"]["source"] = self.options.data_name
        for holder, key in ((recipe, "init_from"), (recipe["distill"] or {}, "teacher")):
            if holder.get(key) is not None:
                holder[key] = DENSE
        return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]

    def trials(self) -> list[tuple[str, int]]:
        """Variant and seed of every row's runs; the dense network is one."""
        chosen = self.options.variants or list(self.protocol.variants)
        counts = {name: max(self.options.seeds, self.protocol.variants[name].seeds) for name in chosen}
        return [(name, seed) for name in chosen for seed in range(1 if name == DENSE else counts[name])]

    def results(self) -> dict[str, dict[str, Any]]:
        """The trials that are finished, by "variant-seed": of the run's folder, else of the record."""
        known = json.loads(self.record.read_text())["trials"] if self.record.exists() else {}
        found = {}
        for name, variant in self.protocol.variants.items():
            for seed in range(max(16, self.options.seeds)):
                key, path, identity = f"{name}-s{seed}", self.folder(name, seed), self.identity(name, seed)
                if (path / "summary.json").exists():
                    if Recipe.from_dict(json.loads((path / "recipe.json").read_text())) != self.recipe(name, seed):
                        raise SystemExit(f"{path} holds a run of other options; choose another --out")
                    found[key] = self.entry(path) | {"title": variant.title, "recipe": identity}
                elif key in known and Recipe.from_dict(known[key]["recipe"]) == Recipe.from_dict(identity):
                    found[key] = known[key] | {"title": variant.title}
        return found

    def entry(self, path: Path) -> dict[str, Any]:
        """A finished run's figures and circumstances."""
        summary = json.loads((path / "summary.json").read_text())
        keys = ("accuracy", "mac_reduction", "network_mac_reduction", "density", "epochs", "seconds", "torch")
        finished = date.fromtimestamp((path / "summary.json").stat().st_mtime).isoformat()
        return {key: summary[key] for key in keys} | {
            "date": finished,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def run(self, name: str, seed: int) -> None:
        """Run one trial in this process."""
        train(self.recipe(name, seed), self.folder(name, seed))

    def run_all(self) -> None:
        """Run what is missing, `--jobs` at a time; the dense run first, for the others start from it."""
        done = self.results()
        if not (self.folder(DENSE, 0) / "model.safetensors").exists():
            done.pop(f"{DENSE}-s0", None)  # the record has its figures, but the others need its weights
        waiting = [trial for trial in self.trials() if f"{trial[0]}-s{trial[1]}" not in done]
        for wave in ([(DENSE, 0)], [trial for trial in waiting if trial[0] != DENSE]):
            with ThreadPoolExecutor(self.options.jobs) as pool:
                list(pool.map(self._spawn, [trial for trial in wave if trial in waiting or trial[0] == DENSE]))

    def _spawn(self, trial: tuple[str, int]) -> None:
        if (self.folder(*trial) / "summary.json").exists():
            return
        command = [sys.executable, __file__, *sys.argv[1:], "--only", trial[0], str(trial[1])]
        threads = str(max(1, (os.cpu_count() or 1) // self.options.jobs))
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})

    def collect(self) -> None:
        """Write the record and print the table in Markdown."""
        results = self.results()
        record = {"data": self.options.data_name, "trials": results}
        self.record.parent.mkdir(exist_ok=True)
        write_atomic(self.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print("| network | top-1 % | MAC reduction, gated layers | whole network | density | seeds |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, variant in self.protocol.variants.items():
            runs = [run for key, run in results.items() if key.rsplit("-s", 1)[0] == name]
            if not runs:
                continue
            mean = {key: statistics.fmean(run[key] for run in runs) for key in FIGURES}
            spread = f" ± {100 * statistics.stdev(run['accuracy'] for run in runs):.2f}" if len(runs) > 1 else ""
            print(
                f"| {variant.title} | {100 * mean['accuracy']:.2f}{spread} | {mean['mac_reduction']:.2f}× "
                f"| {mean['network_mac_reduction']:.2f}× | {mean['density']:.3f} | {len(runs)} |"
            )


FIGURES = ("accuracy", "mac_reduction", "network_mac_reduction", "density")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG-75 copy)", help="what to call the data in the results")
    parser.add_argument("--protocol", default="resnet20", choices=list(PROTOCOLS))
    parser.add_argument("--out", default="runs/cifar10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--variants", nargs="+", help="only these rows")
    parser.add_argument("--only", nargs=2, metavar=("VARIANT", "SEED"), help="run one trial in this process")
    parser.add_argument("--collect", action="store_true", help="only collect what is finished")
    options = parser.parse_args()
    table = Table(options.protocol, options)
    if options.only is not None:
        table.run(options.only[0], int(options.only[1]))
        return
    if not options.collect:
        table.run_all()
    table.collect()


if __name__ == "__main__":
    main()
