"""What a baseline did to a dense network, layer by layer, and how its layers are put in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from headgate.errors import ConfigError, ModelError
from headgate.nn.gated_conv import is_binary


@dataclass(frozen=True, kw_only=True)
class ConvertedLayer:
    """One convolution: whether it was converted, and how or why not."""

    name: str
    converted: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Every convolution of a model that a method was applied to. `print(conversion)` shows a table.

    Attributes:
        method, model: the method's name; the model's class.
        layers: in the order of execution.
    """

    method: str
    model: str
    layers: tuple[ConvertedLayer, ...]

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the layers that were converted; the others are as they were."""
        return tuple(layer.name for layer in self.layers if layer.converted)

    def __str__(self) -> str:
        head = f"{self.model}: {len(self.converted)} of {len(self.layers)} convolutions converted by {self.method}"
        width = max((len(layer.name) for layer in self.layers), default=0)
        rows = [
            f"{layer.name.ljust(width)}  {'' if layer.converted else 'dense: '}{layer.note}".rstrip()
            for layer in self.layers
        ]
        return "\n".join([head, *rows])


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name is one of the names or patterns (fnmatch)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_patterns(option: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raises ConfigError: `patterns` is one string, or one of them matches no layer."""
    known = list(names)
    if isinstance(patterns, str):
        raise ConfigError(f"{option} must be a sequence of names or patterns, got the string {patterns!r}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(
                f"{option} must name layers, got {pattern!r} that matches none; they are named like "
                f"{', '.join(map(repr, known[:3]))}"
            )


def require_numbers(layers: Mapping[str, nn.Module]) -> None:
    """Raises ModelError: a layer is binary. The sign of a weight of 0 is +1 there: to zero weights prunes nothing."""
    binary = [name for name, module in layers.items() if is_binary(module)]
    if binary:
        raise ModelError(
            f"layers must have weights in numbers to be zeroed, got {len(binary)} binary ones (first: {binary[0]!r})"
        )


def swap_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others, at every path at which those are registered."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
