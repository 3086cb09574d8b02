"""Binary networks train in the loop that all others train in: SGD, dense and gated, in float32 and bfloat16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headgate import recipes
from headgate.checkpoint import load
from headgate.nn import gated_layers
from headgate.train import DataConfig, evaluate, train
from headgate.train.prepare import evaluation_batches

pytestmark = pytest.mark.slow
DIGITS = DataConfig(source="digits", augment="none")  # few steps: no augmentation
CHANCE = 0.1


def test_a_dense_binary_network_learns(tmp_path: Path) -> None:
    recipe = replace(recipes.dense(recipes.get("digits-binary-resnet")), data=DIGITS, epochs=2)
    evaluation = train(recipe, tmp_path, console=False).evaluation
    assert evaluation.accuracy > 5 * CHANCE
    assert evaluation.counts.total(network=True, binary=True).dense_macs > 10 * evaluation.counts.network_dense_macs


def test_a_gated_binary_network_learns_and_ends_on_its_budget(tmp_path: Path) -> None:
    recipe = replace(recipes.get("digits-binary-resnet"), data=DIGITS, epochs=3, precision="bf16")
    evaluation = train(recipe, tmp_path, console=False).evaluation
    assert evaluation.accuracy > 5 * CHANCE
    assert evaluation.counts.mac_reduction == pytest.approx(2, rel=0.03)
    assert evaluation.counts.dense_macs == 0
    model = load(tmp_path / "model.safetensors")
    assert all(layer.binary for layer in gated_layers(model).values())
    again = evaluate(model, evaluation_batches(model, DIGITS))
    assert again.accuracy == pytest.approx(evaluation.accuracy)
    assert again.counts.mac_reduction == pytest.approx(evaluation.counts.mac_reduction)


def test_recipes_for_binary_networks_are_listed() -> None:
    for name in ("binary-resnet20-cifar10", "binary-vgg-small-cifar10", "digits-binary-resnet"):
        recipe = recipes.get(name)
        assert "binary" in recipe.architecture.name
        assert recipe.optimiser.weight_decay < recipes.get("resnet20-cifar10").optimiser.weight_decay
        assert recipes.dense(recipe).gate is None
