"""Recipes: a run is a function that returns a typed `Recipe`; `get` finds one by the name the command line uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final

from headgate.errors import ConfigError
from headgate.recipes import cifar10, digits, imagenet
from headgate.train import Recipe

__all__ = ["dense", "get", "names"]

_CIFAR_MODELS: Final = {
    "resnet18": "resnet18-cifar",
    "resnet20": "resnet20",
    "resnet32": "resnet32",
    "resnet56": "resnet56",
    "vgg16": "vgg16-cifar",
    "mobilenetv1": "mobilenetv1-cifar",
    "alexnet": "alexnet-cifar",
}
_CIFAR_BINARY_MODELS: Final = ("binary-resnet20", "binary-vgg-small")
_IMAGENET_MODELS: Final = ("resnet18", "resnet34", "resnet50", "vgg16_bn", "alexnet", "mobilenet_v2")
_RECIPES: Final[Mapping[str, Callable[[], Recipe]]] = MappingProxyType(
    {"digits-cnn": digits.cnn, "digits-binary-resnet": digits.binary}
    | {f"{name}-cifar10": partial(cifar10.short, model) for name, model in _CIFAR_MODELS.items()}
    | {f"{name}-cifar10-paper": partial(cifar10.paper, model) for name, model in _CIFAR_MODELS.items()}
    | {f"{name}-cifar10": partial(cifar10.binary, name) for name in _CIFAR_BINARY_MODELS}
    | {f"{name}-imagenet": partial(imagenet.paper, name) for name in _IMAGENET_MODELS}
)


def names() -> tuple[str, ...]:
    """The recipes' names."""
    return tuple(_RECIPES)


def get(name: str) -> Recipe:
    """The recipe of that name, with its defaults; change it with `dataclasses.replace`.

    Raises: ConfigError: unknown name; near matches are listed.
    """
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, _RECIPES, n=3) or names()
        raise ConfigError(f"recipe must be one of headgate's, got {name!r}; did you mean {', '.join(near)}?")
    return replace(_RECIPES[name](), name=name)


def dense(recipe: Recipe) -> Recipe:
    """The same run without gates: the baseline that a gated run is compared with."""
    return replace(recipe, name=f"{recipe.name}-dense", gate=None, budget=None)
