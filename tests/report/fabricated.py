"""Runs as training leaves them, made in a second: an untrained network, counted on real digits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headgate import recipes
from headgate.checkpoint import Preprocess, save
from headgate.convert import gate_
from headgate.counting import count
from headgate.nn import GateConfig, force_gates
from headgate.train import BudgetConfig, Recipe
from headgate.train.augment import DIGITS_NORMALISE
from headgate.train.data import load_in_memory


def digits_recipe(
    granularity: str | None, channels: int = 1, network: str = "digits-cnn", threshold: float = 0.7, **changes: Any
) -> Recipe:
    """The demo's, or another of scikit-learn's digits, small; without gates where the granularity is None."""
    recipe = recipes.get(network)
    architecture = replace(recipe.architecture, width=16, in_channels=channels)
    recipe = replace(recipe, architecture=architecture, epochs=2, **changes)
    if granularity is None:
        return recipes.dense(recipe)
    gate = GateConfig(groups=4, granularity=granularity, threshold=threshold)  # type: ignore[arg-type]
    return replace(recipe, gate=gate, budget=BudgetConfig(mac_reduction=2.5))


def metrics(*, gated: bool) -> list[dict[str, Any]]:
    """Two epochs of metrics.jsonl."""
    gates = {"mac_reduction": 2.4, "density": 0.2} if gated else {}
    lines: list[dict[str, Any]] = []
    for step in (10, 20, 30, 40):
        train = {"loss": 2.0 / step, "accuracy": step / 50, "offset": step / 40 if gated else None, "epoch": step / 20}
        lines.append({"kind": "train", "step": step, **train, **gates})
    lines.append({"kind": "eval", "step": 40, "epoch": 2, "loss": 0.1, "accuracy": 0.9, "top5": 1.0, **gates})
    return lines


def digits(split: str, channels: int) -> tuple[Tensor, Tensor]:
    """The network's inputs, and labels."""
    data = load_in_memory("digits", split)
    return DIGITS_NORMALISE(data.images).expand(-1, channels, -1, -1), data.labels


def model_of(recipe: Recipe) -> nn.Module:
    """Not trained, but with the statistics of real images."""
    channels = recipe.architecture.in_channels or 1
    images = digits("train", channels)[0][:64]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = recipe.architecture.build()
        if recipe.gate is not None:
            gate_(model, recipe.gate, example_input=images[:1])
        for _ in range(20):
            model.train()(images)
    mean, std = channels * DIGITS_NORMALISE.mean, channels * DIGITS_NORMALISE.std
    model.preprocess = Preprocess(mean, std)  # type: ignore[assignment]
    return model.eval()


def make_run(
    folder: Path, granularity: str | None = "activation", *, forced: bool = False, accuracy: float = 0.9, **changes: Any
) -> Path:
    """Write a finished run's folder.

    Args:
        forced: it was counted with every gate closed.
        changes: of the recipe; channels: of its images; network: the recipe itself; threshold: of its gates.
    """
    recipe = digits_recipe(granularity, **changes)
    model = model_of(recipe)
    images, labels = digits("test", recipe.architecture.in_channels or 1)
    batch = [(images, labels, torch.arange(len(labels)))]
    if forced:
        with force_gates(model, "closed"):
            counts = count(model, batch)
    else:
        counts = count(model, batch)
    folder.mkdir(parents=True)
    summary = {"name": recipe.name, "accuracy": accuracy, "top5": 1.0, "seconds": 3.0, "torch": torch.__version__}
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = metrics(gated=granularity is not None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts.save(folder / "counts.json")
    save(model, folder / "model.safetensors")
    return folder
