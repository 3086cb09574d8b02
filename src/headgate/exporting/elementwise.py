"""Operators of one number at a time: activations, sums, products; and what does nothing in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import fx

from headgate.exporting import windows
from headgate.exporting.builder import Builder
from headgate.exporting.plan import Activate, Add, Affine, Mul
from headgate.graph import TRANSPARENT

ACTIVATIONS: Final[Mapping[str, str]] = {
    **{name: name for name in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh")},
    "swish": "silu",
}
"""The plan's name of an activation, by torch's and timm's in lower case."""
_CLAMPS: Final[Mapping[str, Mapping[str, Any]]] = {
    "hardtanh": windows.HARDTANH,
    "clamp": windows.CLAMP,
    "clip": windows.CLAMP,
    "clampmin": windows.CLAMP_MIN,
}
_BOUNDS: Final[Mapping[Any, str]] = {(0, 6): "relu6", (0, None): "relu", (0, math.inf): "relu"}
_ARITHMETIC: Final = {
    **dict.fromkeys(("add", "iadd"), "add"),
    **dict.fromkeys(("sub", "isub", "subtract"), "sub"),
    **dict.fromkeys(("mul", "imul", "multiply"), "mul"),
    **dict.fromkeys(("truediv", "itruediv", "div", "divide"), "div"),
}


def function_name(node: fx.Node) -> str:
    """What a function or method is called, in lower case without underscores: "relu" for relu_."""
    name = getattr(node.target, "__name__", str(node.target)) if node.op == "call_function" else str(node.target)
    return name.replace("_", "").lower()


def _vanish(builder: Builder, node: fx.Node) -> None:
    name = function_name(node)
    if node.op == "call_function":
        names = windows.STOCHASTIC_DEPTH if name == "stochasticdepth" else windows.DROPOUT
        if builder.settings(node, names)["training"]:
            problem = "expected a dropout that rests in evaluation, got one that is always on"
            raise builder.refuse(node, problem, "give it training=self.training")
    builder.alias(node)
    module = builder.traced.module(node)
    if node.op == "call_function" or (module is not None and type(module).__name__ != "Identity"):
        builder.vanished.append(builder.traced.where(node))


def _activate(builder: Builder, node: fx.Node, activation: str) -> None:
    value = builder.first(node).value
    builder.emit(node, Activate, value, shape=builder.values[value], activation=activation)


def _activation(name: str) -> Callable[[Builder, fx.Node], None]:
    return lambda builder, node: _activate(builder, node, name)


def _clamp(names: Mapping[str, Any]) -> Callable[[Builder, fx.Node], None]:
    def clamp(builder: Builder, node: fx.Node) -> None:
        settings = builder.settings(node, names)
        low, high = settings.get("min", settings.get("min_val")), settings.get("max", settings.get("max_val"))
        if (low, high) not in _BOUNDS:
            raise builder.refuse(node, f"expected a clamp to 0 … 6 or 0 … ∞, got {low} … {high}")
        _activate(builder, node, _BOUNDS[low, high])

    return clamp


def _arithmetic(operation: str) -> Callable[[Builder, fx.Node], None]:
    def arithmetic(builder: Builder, node: fx.Node) -> None:
        operands: list[Any] = [*node.args, *node.kwargs.values()]
        if len(operands) != 2:
            options = ", ".join(f"{name}={value}" for name, value in node.kwargs.items())
            raise builder.refuse(node, f"expected two operands and no options, got {options or operands}")
        if any(isinstance(operand, (int, float)) for operand in operands):
            _with_number(builder, node, operation, operands)
        else:
            _of_two(builder, node, operation, operands)

    return arithmetic


def _of_two(builder: Builder, node: fx.Node, operation: str, operands: list[Any]) -> None:
    left, right = (builder.item(node, operand) for operand in operands)
    maps = builder.values[left.value], builder.values[right.value]
    if operation in ("add", "mul") and left.shape == right.shape and maps[0] == maps[1]:
        kind = Add if operation == "add" else Mul
        return builder.emit(node, kind, left.value, right.value, shape=maps[0])
    if operation == "mul" and len(left.shape) == len(right.shape) == 3:
        if maps[1] == (maps[0][0], 1, 1):
            return builder.emit(node, Mul, builder.map(node, left), builder.map(node, right))
        if maps[0] == (maps[1][0], 1, 1):
            return builder.emit(node, Mul, builder.map(node, right), builder.map(node, left))
    raise builder.refuse(
        node,
        "expected a sum or product of equal shapes, or a product of a map with one number per channel, got "
        f"{operation} of {left.shape} and {right.shape}",
    )


def _with_number(builder: Builder, node: fx.Node, operation: str, operands: list[Any]) -> None:
    """x + 1, 1 − x, 2 · x, x / 2 as an affine."""
    reverse = isinstance(operands[0], (int, float))
    number, operand = operands if reverse else reversed(operands)
    if operation == "div" and (reverse or number == 0):
        raise builder.refuse(node, f"expected a division by a number that is not 0, got {operands}")
    scales = {"add": 1.0, "sub": -1.0 if reverse else 1.0, "mul": number, "div": 1 / number if number else 0.0}
    biases = {"add": number, "sub": number if reverse else -number, "mul": 0.0, "div": 0.0}
    value = builder.item(node, operand).value
    ones = torch.ones(builder.values[value][0], dtype=torch.float64)
    builder.emit(
        node,
        Affine,
        value,
        shape=builder.values[value],
        scale=ones * scales[operation],
        bias=ones * biases[operation],
        fused=(f"{operation} {number:g}",),
    )


HANDLERS: Final[Mapping[str, Callable[[Builder, fx.Node], None]]] = {
    **dict.fromkeys(TRANSPARENT, _vanish),
    **{name: _activation(activation) for name, activation in ACTIVATIONS.items()},
    **{name: _clamp(names) for name, names in _CLAMPS.items()},
    **{name: _arithmetic(operation) for name, operation in _ARITHMETIC.items()},
}
