"""From a graph of layers to operators, one for one: nothing is fused yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor, fx, nn

from headgate.exporting import elementwise, layers, maps
from headgate.exporting.builder import BATCH, Builder, Item
from headgate.exporting.elementwise import function_name
from headgate.exporting.layers import layer_key
from headgate.exporting.plan import Plan
from headgate.exporting.trace_graph import Traced
from headgate.graph import module_operation
from headgate.nn.gated_conv import is_binary

_HANDLERS: Final[Mapping[str, Callable[[Builder, fx.Node], None]]] = {
    **layers.HANDLERS,
    **maps.HANDLERS,
    **elementwise.HANDLERS,
}
_ORIGINS: Final = ("torch", "torchvision", "timm", "_operator", "builtins")
"""Packages whose functions are known by their names alone."""
_IN_PLACE: Final = ("iadd", "imul", "isub", "itruediv")
_INPLACE_ARGUMENT: Final = {**dict.fromkeys(("relu", "relu6", "hardswish", "hardsigmoid", "silu"), 1), "hardtanh": 3}
"""Where the argument `inplace` of a function stands."""


def lower(traced: Traced) -> Plan:
    """The operators of the whole graph, those that nothing reads among them.

    Raises: ExportError: a node is not covered; the message names it.
    """
    builder = Builder(traced)
    _require_numbers(builder)
    output = 0
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            _placeholder(builder, node)
        elif node.op == "output":
            output = _output(builder, node)
        elif node.op != "get_attr" and _holds_tensor(traced, node):  # a constant is refused by what reads it
            _lower(builder, node)
    return Plan(
        values=tuple(builder.values),
        input=0,
        output=output,
        operators=tuple(builder.operators),
        vanished=tuple(builder.vanished),
    )


def _require_numbers(builder: Builder) -> None:
    """Refuse binary convolutions, before their activations are: those could be replaced, and all would be in vain."""
    for node in builder.traced.graph.nodes:
        module = builder.traced.module(node)
        if module is not None and is_binary(module):
            problem = (
                "expected weights and inputs in numbers, got a binary convolution, for which the engine has no kernels"
            )
            raise builder.refuse(node, problem, "run binary networks in torch")


def _holds_tensor(traced: Traced, node: fx.Node) -> bool:
    constant = traced.constants.get(node)
    parts = constant.values() if isinstance(constant, dict) else constant if isinstance(constant, (tuple, list)) else ()
    return node in traced.shapes or any(isinstance(part, Tensor) for part in parts)


def _placeholder(builder: Builder, node: fx.Node) -> None:
    if node not in builder.traced.shapes:
        return  # an option at its default
    if builder.values:
        raise builder.refuse(node, "expected one input, the images, got another tensor", "make it a part of the model")
    _, channels, height, width = builder.traced.shapes[node]
    builder.values.append((channels, height, width))
    builder.items[node] = Item(0, (channels, height, width))


def _output(builder: Builder, node: fx.Node) -> int:
    """The value that the model returns."""
    result: Any = node.args[0]
    if not isinstance(result, fx.Node) or result not in builder.traced.shapes:
        several = isinstance(result, (tuple, list, dict))
        kind = f"a {type(result).__name__} of {len(result)}" if several else repr(result)
        remedy = "wrap the model in a module whose forward returns the one that is wanted"
        raise builder.refuse(node, f"expected a model that returns one tensor, got {kind}", remedy)
    item = builder.item(node, result)
    shape = builder.values[item.value]
    if item.value == 0:
        raise builder.refuse(node, "expected a model that computes something, got one that returns its input")
    if item.shape != shape and shape[1:] != (1, 1):
        problem = f"expected a map or a vector as the output, got {item.shape} made from a map of {shape}"
        raise builder.refuse(node, problem, "return the map as it is, and reshape it behind the engine")
    return item.value


def _lower(builder: Builder, node: fx.Node) -> None:
    traced = builder.traced
    key = _key(traced, node)
    handler = _HANDLERS.get(key)
    if handler is None or node not in traced.shapes:
        raise builder.refuse(node, f"expected an operator that a plan has, got {key!r}")
    shape = traced.shapes[node]
    if len(shape) < 2 or shape[0] != traced.batch:
        problem = f"expected one result per image, got {shape} for a batch of {traced.batch} images"
        raise builder.refuse(node, problem, BATCH)
    module = traced.module(node)
    if module is not None and (module._forward_hooks or module._forward_pre_hooks):
        problem = "expected a module without hooks, got forward hooks, which a plan would drop"
        raise builder.refuse(node, problem, "remove them before the export")
    handler(builder, node)
    if _in_place(module, node):
        builder.overwrite(node)


def _key(traced: Traced, node: fx.Node) -> str:
    """The key of a node's handler: what it does, in lower case without underscores."""
    module = traced.module(node)
    if module is None:
        origin = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        return function_name(node) if origin in _ORIGINS else f"{origin}.{function_name(node)}"
    if isinstance(module, nn.Hardtanh):  # module_operation does not look at its upper bound
        return "hardtanh"
    return layer_key(module) or module_operation(module)


def _in_place(module: nn.Module | None, node: fx.Node) -> bool:
    """Whether a node writes its result over its first operand."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    position = _INPLACE_ARGUMENT.get(name, len(node.args))
    argument = node.args[position] if position < len(node.args) else node.kwargs.get("inplace", False)
    return bool(argument) or name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
