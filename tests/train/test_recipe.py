from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headgate import recipes
from headgate.errors import ConfigError
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DistillConfig, OptimiserConfig, Recipe

NAN = float("nan")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_survives_json(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = recipes.get("resnet18-cifar10-paper")
    assert (recipe.epochs, recipe.batch_size, recipe.optimiser.lr, recipe.optimiser.momentum) == (300, 256, 0.1, 0.9)
    assert recipe.optimiser.weight_decay == 1e-4
    assert recipe.schedule.milestones == (200, 250)
    assert recipe.gate is not None
    assert (recipe.gate.groups, recipe.gate.slope) == (8, 2.0)
    assert recipe.budget == BudgetConfig(target=2.0, weight=1e-4, steering="pull")
    imagenet = recipes.get("resnet18-imagenet")
    assert (imagenet.epochs, imagenet.optimiser.nesterov) == (140, True)
    assert imagenet.schedule.milestones == (30, 60, 90, 120)
    assert imagenet.data.test_split == "validation"  # the labels of "test" are not public


def test_unknown_recipe_lists_near_matches() -> None:
    with pytest.raises(ConfigError, match=r"'resnet20-cifar100'.*resnet20-cifar10"):
        recipes.get("resnet20-cifar100")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of mac_reduction, target and forced"),
        ({"mac_reduction": 3, "target": 1.0}, "exactly one"),
        ({"mac_reduction": 1.0}, "mac_reduction must be > 1, got 1.0"),
        ({"target": 1.0, "steering": "penalty"}, "needs mac_reduction"),
        ({"target": 1.0, "elastic": -1}, "elastic must be ≥ 0"),
        ({"target": NAN}, "target must be a finite number, got nan"),
        ({"target": 1.0, "elastic": float("inf")}, "elastic must be a finite number, got inf"),
        ({"target": 1.0, "weight": -1e-4}, "weight must be ≥ 0, got -0.0001"),
        ({"target": 1.0, "weight_final": NAN}, "weight_final must be a finite number"),
        ({"target": 1.0, "slope_final": 0.0}, "slope_final must be > 0, got 0.0"),
        ({"mac_reduction": 2.0, "steering": "pull"}, "steering='pull' needs a target"),
        ({"target": 1.0, "steering": "pull", "close_epochs": 1}, "steering='pull' needs.*close_epochs=1"),
    ],
)
def test_budget_says_what_is_wrong(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BudgetConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"lr": 1e30}, r"lr must be in \(0, 1000\], got 1e\+30"),
        ({"weight_decay": -1}, "weight_decay must be ≥ 0"),
        ({"weight_decay": NAN}, "weight_decay must be a finite number"),
        ({"max_grad_norm": -1}, "max_grad_norm must be > 0"),
    ],
)
def test_optimiser_says_what_is_wrong(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimiserConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": NAN}, "threshold must be a finite number, got nan"),
        ({"threshold": "a"}, "threshold must be a finite number, got 'a'"),
        ({"slope": float("inf")}, "slope must be a finite number, got inf"),
        ({"channel_bound": NAN}, "channel_bound must be a finite number"),
    ],
)
def test_gates_say_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GateConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [{"data": 3}, {"data": {"source": 3}}, {"epochs": -1}, {"no_such_option": 1}],
    ids=lambda value: str(value),
)
def test_a_damaged_recipe_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"not a recipe|source must be|epochs must be ≥ 1, got -1"):
        Recipe.from_dict(recipes.get("digits-cnn").to_dict() | values)


def test_recipe_and_distillation_say_what_is_wrong() -> None:
    recipe = recipes.get("digits-cnn")
    with pytest.raises(ConfigError, match="epochs must be ≥ 1, got 0"):
        replace(recipe, epochs=0)
    with pytest.raises(ConfigError, match="both gate and budget"):
        replace(recipe, budget=None)
    with pytest.raises(ConfigError, match="alpha must be in"):
        DistillConfig(teacher="x", alpha=2)
    with pytest.raises(ConfigError, match="not a recipe of this version"):
        Recipe.from_dict({**recipe.to_dict(), "learning_rate": 3})
